"""The devices of a job, where they are started and what is known there of them: on this host.

`launcher.py` asks it; `cluster/crew.py` is one whose devices are on several machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.host.fork import InterpreterLost, fork_context
from tpi_bench.host.memory import PssSampler
from tpi_bench.processes.caps import Caps
from tpi_bench.processes.handle import DeviceHandle, Handle
from tpi_bench.processes.relay import Relays
from tpi_bench.processes.verdict import Trouble


class Crew:
    """Forks the devices from one interpreter, caps them and looks at their memory."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.caps = Caps(job)
        self.pss = PssSampler()
        self.relays: Relays | None = None

    def start(self, devices: list[Handle], trouble: Trouble) -> None:
        """Into `devices`, as they start. Where one does not, `trouble` says why."""
        self.caps.make()
        context = fork_context()
        for rank in range(self.job.num_devices):
            try:
                devices.append(DeviceHandle(rank, self.job, self.caps.of(rank), context))
            except InterpreterLost as error:
                trouble.died[rank] = str(error).removeprefix(f"rank {rank} ")
                return

    def reach(self, services: list[list[int]], trouble: Trouble) -> list[list[int]]:
        """Ports at which the master reaches what devices serve: relays', if links are emulated.

        Where these do not start, `trouble` says why.
        """
        if not self.job.network.is_emulated or not any(services):
            return services
        try:
            self.relays = Relays(self.job.network, services, fork_context())
        except (InterpreterLost, RuntimeError) as error:
            trouble.failed[0] = ("error", str(error))
            return services
        return self.relays.ports

    def due_in_s(self) -> float:
        """Until `look` has something to do."""
        return self.pss.due_in_s()

    def look(self, running: Sequence[Handle]) -> None:
        """At the memory of running devices, if it is time."""
        self.pss.sample({device.rank: device.pid for device in running})

    def end(self, outcome: Outcome) -> None:
        """All devices have ended: add what is known here only, and leave nothing behind."""
        if self.relays is not None:
            self.relays.end()
        outcome.memory_cap, outcome.pss_interval_s = self.caps.kind, self.pss.interval_s
        peaks = [self.caps.peak_bytes(rank) for rank in range(self.job.num_devices)]
        known = [peak for peak in peaks if not math.isnan(peak)]
        outcome.peak_cgroup_bytes = max(known, default=math.nan)
        for report in outcome.devices:
            report.peak_cgroup_bytes = peaks[report.rank]
            self.pss.note(report.rank, report.peak_pss_bytes)
            report.peak_pss_bytes = self.pss.peaks.get(report.rank, math.nan)
        self.caps.remove()
