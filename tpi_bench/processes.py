"""The `processes` testbed: one OS process a device on this host, started and watched from here.

Devices are forked from one clean interpreter that has torch loaded (multiprocessing's fork
server), so a point starts in a fraction of a second and still in fresh processes. While they run,
the launcher sleeps on their control pipes; a device that dies, fails or hangs, or a job that takes
longer than it may, ends the job with its rank and the reason, and nothing is left behind. Control
messages are JSON over local pipes; devices talk TCP.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, ClassVar

from tpi_bench.caps import Caps, Limit
from tpi_bench.clean_fork import fork_context
from tpi_bench.job import DeviceReport, Job, Outcome
from tpi_bench.pss import PssSampler
from tpi_bench.verdict import Trouble, how_it_died
from tpi_bench.workload import Generation

_GRACE_S = 0.6  # how long causes are collected after the first sign of trouble
_START_S = 60.0
_ANSWER_S = 0.3  # how long a device may take to say what it was at


@dataclass(frozen=True, kw_only=True)
class ProcessesTestbed:
    """`threads_per_device` auto divides the cores over the devices, at least one each."""

    num_devices: int = 2
    threads_per_device: int | str = "auto"
    pin_cpus: bool = False
    proportions: list[float] | None = None
    trace: bool = False

    clock: ClassVar[str] = "wall"
    cost: ClassVar[str] = "real"

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ValueError(f"testbed.num_devices={self.num_devices} must be at least 1")
        threads = self.threads_per_device
        if threads != "auto" and (not isinstance(threads, int) or threads < 1):
            raise ValueError(
                f"testbed.threads_per_device={threads} must be a whole number of at least "
                "1, or auto"
            )

    def threads(self, num_devices: int) -> int:
        """Threads of each of `num_devices` devices."""
        if self.threads_per_device != "auto":
            return int(self.threads_per_device)
        return max(1, len(available_cpus()) // num_devices)

    def run(self, job: Job, on_token: Callable[[int], None] | None, cache_dir: Path) -> Outcome:
        """Run the job with one process a device."""
        return run_job(job, on_token)

    def cpus(self, num_devices: int, threads: int) -> list[list[int]] | None:
        """The cores each device is pinned to, round robin; None when it is left to the kernel."""
        if not self.pin_cpus:
            return None
        if not hasattr(os, "sched_setaffinity"):
            raise ValueError(
                "testbed.pin_cpus=true is not possible on this system; set it to false"
            )
        cores = available_cpus()
        return [
            [cores[(rank * threads + i) % len(cores)] for i in range(threads)]
            for rank in range(num_devices)
        ]


def available_cpus() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@dataclass
class _Device:
    rank: int
    process: ForkServerProcess
    control: Connection
    port: int | None = None
    is_done: bool = False
    is_closed: bool = False
    answered_s: float = 0.0  # when it last answered
    moved_s: float = 0.0  # when it was last seen to get on with its work
    status: dict[str, Any] = field(default_factory=dict)
    limit: Limit = field(default_factory=Limit)


class Launch:
    """One job on its devices. Use `run_job`."""

    def __init__(self, job: Job, on_token: Callable[[int], None] | None) -> None:
        self._job = job
        self._on_token = on_token
        self._devices: list[_Device] = []
        self._outcome = Outcome(status="ok")
        self._trouble = Trouble()
        self._caps = Caps(job)
        self._pss = PssSampler()
        self._start_s = time.monotonic()

    def run(self) -> Outcome:
        try:
            self._caps.make()
            self._start()
            self._connect()
            self._watch(until=lambda: all(device.is_done for device in self._devices), asks=True)
            if self._trouble:
                self._collect_causes()
                self._outcome.status, self._outcome.error = self._trouble.verdict()
        finally:
            self._end()
        return self._outcome

    def _start(self) -> None:
        from tpi_bench.launch_target import run_device_process

        context = fork_context()
        for rank in range(self._job.num_devices):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=run_device_process,
                args=(rank, self._job, self._caps.of(rank), theirs),
                name=f"rank {rank}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._devices.append(_Device(rank, process, ours))

    def _connect(self) -> None:
        """Every device has told its port; tell everyone all ports and the run's secret."""
        self._watch(until=lambda: all(device.port for device in self._devices), timeout_s=_START_S)
        if self._trouble:
            return
        ports = [device.port for device in self._devices]
        message = json.dumps({"ports": ports, "secret": secrets.token_hex(32)}).encode()
        for device in self._devices:
            self._say(device, message)

    def _watch(
        self, until: Callable[[], bool], timeout_s: float | None = None, asks: bool = False
    ) -> None:
        """Handle messages until `until()`, a sign of trouble, or the time is up.

        With `asks`, every device is asked for a sign of life a few times per `network.timeout_s`.
        """
        start = time.monotonic()
        interval_s = self._job.network.timeout_s / 4 if asks else timeout_s
        for device in self._devices:
            device.answered_s = device.moved_s = start
        while not until() and not self._trouble:
            pauses = (interval_s, self._left_s(), self._pss.due_in_s())
            self._handle_ready(max(0.0, min(pause for pause in pauses if pause is not None)))
            self._pss.sample({d.rank: d.process.pid or 0 for d in self._running()})
            now = time.monotonic()
            if self._left_s() <= 0 and not until() and not self._trouble:
                self._note_late()
            elif asks and now - start >= self._job.network.timeout_s / 4:
                start = now
                self._check_life(now)
            elif timeout_s is not None and now - start > timeout_s and not until():
                silent = min(d.rank for d in self._devices if d.port is None)
                self._trouble.lost.append((silent, silent, "did not start in time"))

    def _check_life(self, now_s: float) -> None:
        """Note devices that do not answer, or get nowhere though they neither compute nor wait.

        A device that waits for a peer is not to blame while that peer is at work; when all wait for
        each other, the first is named.
        """
        limit_s = self._job.network.timeout_s
        limit = f"{limit_s:g} s (network.timeout_s)"
        running = self._running()
        for device in running:
            if now_s - device.answered_s > limit_s:
                self._trouble.hangs[device.rank] = f"hangs: it has not answered for {limit}"
            elif now_s - device.moved_s > limit_s and device.status.get("waiting_for") is None:
                self._trouble.hangs[device.rank] = f"hangs: it has made no progress for {limit}"
        if running and all(now_s - device.moved_s > 2 * limit_s for device in running):
            rank = running[0].rank
            waited = f"{2 * limit_s:g} s (twice network.timeout_s)"
            self._trouble.hangs.setdefault(rank, f"hangs: all devices have waited for {waited}")
        for device in running:
            self._say(device, b"status")

    def _running(self) -> list[_Device]:
        return [device for device in self._devices if not device.is_closed and not device.is_done]

    def _left_s(self) -> float:
        """Until the job has taken as long as it may."""
        limit_s = self._job.timeout_s
        return math.inf if limit_s is None else self._start_s + limit_s - time.monotonic()

    def _note_late(self) -> None:
        """Name the first device that is not done, and what it says that it is doing."""
        device = self._running()[0]
        doing = "starting"
        if all(other.port for other in self._devices):
            device.status = {}  # the last answer may be old
            self._say(device, b"status")
            self._listen(_ANSWER_S, until=lambda: bool(device.status))
            peer = device.status.get("waiting_for")
            doing = "computing" if device.status.get("is_computing") else "running"
            doing = doing if peer is None else f"waiting for rank {peer}"
        limit = f"{self._job.timeout_s:g} s (timeout_s)"
        self._trouble.late[device.rank] = f"was still {doing} after {limit}"

    def _handle_ready(self, timeout_s: float | None) -> None:
        open_devices = [device for device in self._devices if not device.is_closed]
        by_control = {device.control: device for device in open_devices}
        for ready in wait(list(by_control), timeout_s):
            device = by_control[ready]  # type: ignore[index]
            try:
                message = json.loads(device.control.recv_bytes())
            except (EOFError, OSError):
                device.is_closed = True
                if not device.is_done:
                    self._note_death(device)
            else:
                self._handle(device, message)

    def _note_death(self, device: _Device) -> None:
        device.process.join(1.0)
        rank = device.rank
        if self._caps.was_killed(rank):
            reason = self._caps.oom_text(rank, device.limit, None)
            self._trouble.out_of_memory[rank] = reason
        elif not self._trouble.told(rank):  # else the cause is known, or elsewhere
            self._trouble.died[rank] = how_it_died(device.process.exitcode)

    def _handle(self, device: _Device, message: dict[str, Any]) -> None:
        event = message["event"]
        if event == "entered":
            device.limit = Limit(**message["limit"])
        elif event == "listening":
            device.port = message["port"]
        elif event == "token":
            if self._on_token:
                self._on_token(message["token"])
        elif event == "done":
            device.is_done = True
            self._outcome.devices.append(DeviceReport(**message["report"]))
            if device.rank == 0:
                self._outcome.generation = Generation(**message["generation"])
                self._outcome.round_trips_ns = message["round_trips_ns"]
        elif event == "failed" and message["status"] == "oom":
            reason = self._caps.oom_text(device.rank, device.limit, message["reason"])
            self._trouble.out_of_memory[device.rank] = reason
        elif event == "failed":
            self._trouble.failed[device.rank] = (message["status"], message["reason"])
        elif event == "lost":
            self._trouble.lost.append((device.rank, message["peer"], message["reason"]))
        elif event == "status":
            device.answered_s = time.monotonic()
            if message["is_computing"] or message["num_steps"] != device.status.get("num_steps"):
                device.moved_s = device.answered_s
            device.status = message

    def _collect_causes(self) -> None:
        """The first sign is often a consequence: listen a little longer."""
        if not self._trouble.is_final:
            self._listen(_GRACE_S, until=lambda: all(d.is_closed for d in self._devices))

    def _listen(self, duration_s: float, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + duration_s
        while not until() and (remaining := deadline - time.monotonic()) > 0:
            self._handle_ready(remaining)

    def _say(self, device: _Device, message: bytes) -> None:
        try:
            device.control.send_bytes(message)
        except OSError:
            device.is_closed = True
            self._note_death(device)

    def _end(self) -> None:
        """No device outlives its job, nor does its group."""
        for device in self._devices:
            device.process.join(2.0 if device.is_done and not self._trouble else 0.0)
            if device.process.is_alive():
                device.process.kill()
                device.process.join()
            device.control.close()
            device.process.close()
        self._outcome.wall_s = time.monotonic() - self._start_s
        self._complete_reports()
        self._caps.remove()

    def _complete_reports(self) -> None:
        """Add what is known here only."""
        outcome, caps = self._outcome, self._caps
        outcome.memory_cap, outcome.pss_interval_s = caps.kind, self._pss.interval_s
        peaks = [caps.peak_bytes(device.rank) for device in self._devices]
        known = [peak for peak in peaks if not math.isnan(peak)]
        outcome.peak_cgroup_bytes = max(known, default=math.nan)
        for report in outcome.devices:
            report.peak_cgroup_bytes = peaks[report.rank]
            self._pss.note(report.rank, report.peak_pss_bytes)
            report.peak_pss_bytes = self._pss.peaks.get(report.rank, math.nan)


def run_job(job: Job, on_token: Callable[[int], None] | None = None) -> Outcome:
    """Run `job` with one process a device and wait. Never raises for a device's failure."""
    return Launch(job, on_token).run()
