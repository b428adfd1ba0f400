"""What every testbed runs on a rank: round trips first, then the system's own program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tpi_bench.contract.job import Job, NextTurn, Output
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Generation
from tpi_bench.contract.runtime import ClockReading, Runtime

_CLOCK_READINGS = 10


@dataclass(kw_only=True)
class RankResult:
    """What a rank has to tell; only the master has anything."""

    generation: Generation | None = None
    round_trips_ns: list[int] = field(default_factory=list)
    clocks: list[ClockReading] = field(default_factory=list)


def run_rank(
    rt: Runtime,
    job: Job,
    on_token: Callable[[int], None] | None = None,
    next_turn: NextTurn | None = None,
    is_enough: Callable[[], bool] | None = None,
) -> RankResult:
    """Run one rank of a job to its end. The master's logits are kept where the job says."""
    round_trips_ns = measure_round_trips(rt, job.network)
    clocks = read_clocks(rt) if job.hosts else []
    logits: list[torch.Tensor] = []
    output = Output()
    if rt.rank == 0:
        output.on_token, output.next_turn = on_token, next_turn
        output.is_enough = is_enough
        if job.logits_path:
            output.on_logits = lambda row: logits.append(row.clone())
    generation = job.program.run_device(rt, job, output)
    if job.hosts:  # clocks of several machines drift
        clocks += read_clocks(rt)
    if logits and job.logits_path:
        torch.save(torch.stack(logits), job.logits_path)
    return RankResult(generation=generation, round_trips_ns=round_trips_ns, clocks=clocks)


def measure_round_trips(rt: Runtime, network: NetworkConfig) -> list[int]:
    """Times of 8-byte messages from the master to a worker and back, every worker in turn, in ns.

    As many as fit in about a tenth of a second on the emulated links; the first of each worker is
    dropped.
    """
    ping = torch.zeros(1, dtype=torch.int64)
    budget = 100_000_000 // max(1, 2 * network.one_way_ns * (rt.world_size - 1))
    count = max(3, min(20, budget))
    times = []
    for worker in range(1, rt.world_size):
        for attempt in range(count):
            if rt.rank == 0:
                start = rt.now()
                rt.send(worker, ping)
                rt.recv(worker, ping)
                if attempt:
                    times.append(rt.now() - start)
            elif rt.rank == worker:
                rt.recv(0, ping)
                rt.send(0, ping)
    return times


def read_clocks(rt: Runtime) -> list[ClockReading]:
    """Every worker's clock as the master sees it: of several round trips the fastest tells most."""
    found = []
    clock = torch.zeros(1, dtype=torch.int64)
    for worker in range(1, rt.world_size):
        readings = []
        for _ in range(_CLOCK_READINGS):
            if rt.rank == 0:
                start_ns = rt.now()
                rt.send(worker, clock)
                rt.recv(worker, clock)
                half_ns = (rt.now() - start_ns) // 2
                at_ns = start_ns + half_ns
                readings.append(ClockReading(worker, int(clock[0]) - at_ns, half_ns, at_ns))
            elif rt.rank == worker:
                rt.recv(0, clock)
                clock[0] = rt.now()
                rt.send(0, clock)
        if readings:
            found.append(min(readings, key=lambda reading: reading.error_ns))
    return found
