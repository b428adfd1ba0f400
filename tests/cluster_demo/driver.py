"""A program on the first machine that runs points as they are asked for, a JSON line each.

One for many points: joining Ray and starting what devices are forked from takes some seconds.
`python -m tests.cluster_demo.driver` is its other end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

from tests.cluster_demo.machines import Machines


class Driver:
    """Runs points from the first machine. `process` is its program."""

    def __init__(self, machines: Machines) -> None:
        command = machines.command(0, [sys.executable, "-m", "tests.cluster_demo.driver"])
        self._log = machines.folder / "driver.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._said: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, arguments: Sequence[str]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(list(arguments)) + "\n")
        self.process.stdin.flush()

    def hear(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """What it says next: that the first token is there, or how the point ended."""
        try:
            said = self._said.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError(f"the driver has said nothing for {timeout_s:g} s") from None
        assert said is not None, f"the driver has ended: {self._log.read_text()[-2000:]}"
        return said

    def run(self, *arguments: str) -> dict[str, Any]:
        """A point to its end."""
        self.begin(arguments)
        while "begun" in (said := self.hear()):
            pass
        return said

    def end_of_point(self, timeout_s: float) -> dict[str, Any] | None:
        """How the point that was begun ended; None where the program itself did."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            said = self._said.get(timeout=timeout_s)
            if said is None or "begun" not in said:
                return said
        raise TimeoutError(f"the point has not ended for {timeout_s:g} s")

    def close(self) -> None:
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(10.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(json.loads(line))
        self._said.put(None)


def _serve() -> None:
    from tpi_bench import run
    from tpi_bench.measure import point

    point._PAUSES_S = (0.0,)  # other work on this host would have it probed again and again
    for line in sys.stdin:
        told: list[str] = []

        def tell(text: str, told: list[str] = told) -> None:
            if not told:
                _say({"begun": True})
            told.append(text)

        try:
            result = run(*json.loads(line), on_text=tell)
        except ValueError as error:
            _say({"refused": str(error)})
            continue
        row = result.row
        _say(
            {
                "status": result.status,
                "error": row.error,
                "tokens": result.token_ids,
                "row": {
                    name: getattr(row, name)
                    for name in (
                        *("device", "note", "memory_bps", "link_round_trip_s", "cache", "tls"),
                        *("token_latency_s", "busy_cores_start", "steal_share"),
                    )
                },
                "links": [vars(link) for link in result.record.links],
                "devices": [vars(device) for device in result.devices],
                "spans": [vars(span) for span in result.spans],
            }
        )


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
