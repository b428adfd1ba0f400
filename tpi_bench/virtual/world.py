"""All ranks of one run in virtual time, their network and the time they share. `run.py` makes one
for a job.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeVar

import torch
from greenlet import greenlet

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.runtime import DeviceLost, ended_early
from tpi_bench.virtual.costs import Costs
from tpi_bench.virtual.disk import DiskQueue
from tpi_bench.virtual.memory_bus import MemoryBus
from tpi_bench.virtual.network import Fabric
from tpi_bench.virtual.runtime import VirtualRuntime
from tpi_bench.virtual.scheduler import Deadlock, Scheduler
from tpi_bench.virtual.shared_disk import SharedDisk

T = TypeVar("T")


class Shared(NamedTuple):
    """What devices have in common where they are processes of one host."""

    disk: bool = False
    memory: bool = False


_NOTHING = Shared()


class World:
    """All ranks of one run, their network and the time they share."""

    def __init__(
        self,
        profiles: Sequence[DeviceProfile],
        network: NetworkConfig,
        costs: Costs,
        shared: Shared = _NOTHING,
        *,
        trace: bool = False,
    ) -> None:
        self.num_devices = len(profiles)
        self.costs = costs
        self.trace = trace
        self.scheduler = Scheduler()
        self.memory = MemoryBus(self.scheduler) if shared.memory else None
        self.fabric = Fabric(network, len(profiles), self.scheduler)
        one_disk = SharedDisk(profiles[0], self.scheduler) if shared.disk else None
        self.runtimes = [
            VirtualRuntime(rank, self, profile, one_disk or DiskQueue(profile))
            for rank, profile in enumerate(profiles)
        ]
        self.failed: dict[int, BaseException] = {}
        self._num_running = 0

    def fail_at(self, rank: int, time_ns: int) -> None:
        """The device is gone at that time, and with it the run."""

        def fail() -> None:
            if self._num_running and not self.scheduler.is_idle:  # else all wait for ever
                raise DeviceLost(rank, f"failed at {time_ns / 1e9:g} s of virtual time, as asked")

        self.scheduler.at(time_ns, fail)

    def run(self, program: Callable[[VirtualRuntime], T]) -> list[T]:
        """Run `program` on every rank to its end; results by rank.

        Raises Deadlock, or what a rank raised, with the rank in `failed`.
        """
        results: dict[int, T] = {}
        self._num_running = self.num_devices

        def body(runtime: VirtualRuntime) -> None:
            try:
                results[runtime.rank] = program(runtime)
                runtime.catch_up()
                self._num_running -= 1
            except Exception as error:
                runtime.catch_up()  # what fails first in virtual time is what is told
                self.failed[runtime.rank] = error
                raise

        for runtime in self.runtimes:
            runtime.greenlet = greenlet(body)
            self.scheduler.at(0, functools.partial(runtime.greenlet.switch, runtime))
        try:
            with torch.inference_mode():
                self.scheduler.run()
            if len(results) < self.num_devices:
                raise Deadlock(self._who_waits(ended=results))
        finally:
            self._end()
        return [results[rank] for rank in range(self.num_devices)]

    @property
    def num_events(self) -> int:
        """What has happened so far: what was planned, and the steps of each device's clock."""
        return self.scheduler.num_events + sum(each.num_steps for each in self.runtimes)

    def _who_waits(self, ended: Collection[int]) -> str:
        waits = {
            runtime.rank: runtime.waiting_for
            for runtime in self.runtimes
            if runtime.waiting_for is not None
        }
        for rank, peer in waits.items():
            if peer in ended:
                return ended_early(peer, rank)
        words = (f"rank {rank} waits for rank {peer}" for rank, peer in waits.items())
        return "deadlock: " + ", ".join(words)

    def _end(self) -> None:
        """Greenlets that wait for ever are thrown out, so that nothing holds their memory."""
        for runtime in self.runtimes:
            if runtime.greenlet is not None and not runtime.greenlet.dead:
                runtime.greenlet.throw()
