"""The `processes` testbed as a choice in `conf/testbed/`: devices are processes of this host.

`measure/` asks what a testbed can do and lets it run jobs; `launcher.py` does the running.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job, NextTurn, OnToken, Outcome
from tpi_bench.contract.network import VIRTUAL_ONLY, NetworkConfig
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import System
from tpi_bench.contract.testbed import Machines, Testbed
from tpi_bench.host.interpreter import GROWTH_BYTES, free_of_caps
from tpi_bench.host.machine import available_cpus, share_cores
from tpi_bench.processes.launcher import run_job


@dataclass(frozen=True, kw_only=True)
class ProcessesTestbed(Testbed):
    """`threads_per_device` auto divides the cores over the devices, at least one each."""

    num_devices: int = setting(2, "devices, a process each", common=True)
    threads_per_device: int | str = setting(
        "auto",
        "threads of each; auto divides the cores over the devices, at least 1 each",
        ("auto", "1, 2, ..."),
    )
    pin_cpus: bool = setting(False, "pin each device to cores of its own")
    proportions: list[float] | None = setting(
        None,
        "shares of heads, columns or layers, one a device, e.g. [2,1,1]; null is equal",
        common=True,
    )
    trace: bool = setting(False, "also store every span of compute, sync, load wait and read")

    clock: ClassVar[str] = "wall"
    cost = "real"  # no setting
    spare_bytes: ClassVar[int | None] = GROWTH_BYTES
    can_talk: ClassVar[bool] = True
    ignores: ClassVar[tuple[str, ...]] = ("device",)

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ValueError(f"testbed.num_devices={self.num_devices} must be at least 1")
        threads = self.threads_per_device
        if threads != "auto" and (not isinstance(threads, int) or threads < 1):
            raise ValueError(
                f"testbed.threads_per_device={threads} must be a whole number of at least "
                "1, or auto"
            )

    def check(self, system: System, network: NetworkConfig, *, needs_tokens: bool) -> None:
        if network.topology in VIRTUAL_ONLY:
            raise ValueError(
                f"network.topology={network.topology} exists in virtual time only; use "
                "testbed=virtual, or network=switch or network=paper"
            )

    def threads(self, num_devices: int) -> int:
        if self.threads_per_device != "auto":
            return int(self.threads_per_device)
        return max(1, len(available_cpus()) // num_devices)

    def cpus(self, num_devices: int, threads: int) -> list[list[int]] | None:
        """Round robin, where devices are to be pinned."""
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

    def free_bytes(
        self, profiles: Sequence[DeviceProfile], memory_bytes: Sequence[int] | None
    ) -> tuple[int, ...] | None:
        return free_of_caps(memory_bytes)

    def run(self, job: Job, on_token: Callable[[int], None] | None, cache_dir: Path) -> Outcome:
        return run_job(job, on_token)

    def converse(self, job: Job, on_token: OnToken | None, next_turn: NextTurn) -> Outcome:
        return run_job(job, on_token, next_turn)

    def one_way_s(self, job: Job, round_trips_ns: Sequence[int]) -> float:
        """As emulated, or half the least round trip where nothing is; 0 without any."""
        if job.num_devices > 1 and job.network.is_emulated:
            return job.network.one_way_ns / 1e9
        return min(round_trips_ns, default=0) / 2e9

    def machines(self, job: Job) -> Machines:
        shared = share_cores(job.num_devices * job.threads_per_device)
        return Machines(names="this host", cores_per_device=math.nan, share_cores=shared)

    def where(self, job: Job) -> str:
        plural = "s" if job.num_devices > 1 else ""
        share = ", sharing cores" if self.machines(job).share_cores else ""
        links = job.network.words if job.num_devices > 1 else "no network"
        return (
            f"{job.num_devices} device{plural} ({job.threads_per_device} threads each{share}; "
            f"{links})"
        )
