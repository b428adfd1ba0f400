"""Machines to try a cluster on, all on this host: network namespaces, or addresses of loopback.

As root each is a network namespace with an address of its own, joined by a bridge: what runs in
one reaches the others only by TCP, and a link can be taken down. Without root each is an address
127.0.0.x. Each runs `ray start`; nothing but what was started here is ended.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType

import psutil

_START_S = 40.0
_STORE_BYTES = 80_000_000
_PORT = 6399
# Ray holds a node that does not answer for alive for half a minute otherwise.
_SOON_DEAD = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
_PLACES = itertools.count()  # several clusters of one program have their own names


class Machines:
    """`num` of them, the first with Ray's head. Leaves nothing behind."""

    def __init__(self, num: int = 3, *, cpus: int = 1) -> None:
        self.has_links = can_make_namespaces()
        self._num, self._cpus = num, cpus
        place = next(_PLACES)
        self._own = f"tpb{os.getpid() % 100000}{chr(ord('a') + place)}"
        net = f"10.77.{(os.getpid() + place) % 250}" if self.has_links else "127.0.0"
        first = 1 if self.has_links else 1 + 20 * place
        self.addresses = [f"{net}.{first + number}" for number in range(num)]
        self.port = _PORT if self.has_links else _free_port()
        self.rays: dict[int, subprocess.Popen] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="tpi_bench-cluster-"))

    @property
    def address(self) -> str:
        """For `testbed.address=`."""
        return f"{self.addresses[0]}:{self.port}"

    def __enter__(self) -> Machines:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _end)  # or it would all stay behind
        try:
            if self.has_links:
                self._make_links()
            for number in range(self._num):  # at once they would take each other's files
                self.start(number)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def command(self, number: int, arguments: Sequence[str]) -> list[str]:
        """To run something on a machine."""
        inside = ["ip", "netns", "exec", f"{self._own}n{number}"] if self.has_links else []
        return [*inside, *arguments]

    def start(self, number: int) -> None:
        """Ray on a machine, once it takes part."""
        own = self.addresses[number]
        where = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        where = where if number == 0 else [f"--address={self.address}"]
        ray = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *where,
            f"--node-ip-address={own}",
            f"--num-cpus={self._cpus}",
            f"--object-store-memory={_STORE_BYTES}",
            f'--resources={{"device:{number}": 1}}',
            "--disable-usage-stats",
        ]
        if number == 0:
            ray.append(f"--temp-dir={self.folder / 'ray'}")
        log = (self.folder / f"ray{number}.log").open("wb")
        with log:
            self.rays[number] = subprocess.Popen(
                self.command(number, ray),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **_SOON_DEAD},
            )
        self._await(number)

    def kill(self, number: int) -> None:
        """All that runs on a machine at once, as if its power failed."""
        ray = self.rays.pop(number)
        for process in [ray, *_descendants(ray.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        ray.wait()

    def cut(self, number: int, *, up: bool = False) -> None:
        """Take a machine's link down, or up again. Only with namespaces."""
        _ip("link", "set", f"{self._own}v{number}", "up" if up else "down")

    def close(self) -> None:
        for number in list(self.rays):
            self.kill(number)
        if self.has_links:
            for number in range(self._num):
                _ip("netns", "del", f"{self._own}n{number}", check=False)
            _ip("link", "del", f"{self._own}b", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def devices(self, number: int) -> list[psutil.Process]:
        """Devices on a machine: what its fork server has forked."""
        found = []
        for process in _descendants(self.rays[number].pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = process.parent()
                if parent is not None and "forkserver" in " ".join(parent.cmdline()):
                    found.append(process)
        return found

    def agents(self) -> list[psutil.Process]:
        """Of all machines."""
        found = []
        for ray in self.rays.values():
            for process in _descendants(ray.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "NodeAgent" in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def await_no_devices(self, within_s: float = 6.0) -> bool:
        """Whether none runs any more, on any machine."""
        deadline = time.monotonic() + within_s
        while any(self.devices(number) for number in self.rays):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def left_over(self) -> list[str]:
        """Processes of this program that still run on the machines: devices and agents."""
        found = []
        for ray in self.rays.values():
            for process in _descendants(ray.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    line = " ".join(process.cmdline())
                    if "forkserver" in line or "NodeAgent" in line:
                        found.append(line)
        return found

    def _make_links(self) -> None:
        bridge = f"{self._own}b"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for number, address in enumerate(self.addresses):
            space, outer, inner = (f"{self._own}{kind}{number}" for kind in "nvi")
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", space)
            _ip("link", "set", outer, "master", bridge, "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", inner)
            _ip("-n", space, "link", "set", inner, "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def _await(self, number: int) -> None:
        log = self.folder / f"ray{number}.log"
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            text = log.read_text(errors="replace")
            if "Ray runtime started" in text:
                return
            if self.rays[number].poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"Ray did not start on machine {number}: {text[-2000:]}")


def can_make_namespaces() -> bool:
    """Tried, because root of a container may not."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"tpbtry{os.getpid() % 100000}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        _ip("netns", "del", name)
    return made.returncode == 0


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=check)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
