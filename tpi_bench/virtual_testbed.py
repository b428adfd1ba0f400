"""The `virtual` testbed: devices of given profiles in virtual time, in one helper process.

Needs no torch itself: the launcher only checks the settings and hands the job over.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tpi_bench import cache, provenance
from tpi_bench.helper import in_helper
from tpi_bench.job import DeviceReport, Job, Outcome
from tpi_bench.profiles import DeviceProfile

if TYPE_CHECKING:
    from tpi_bench.costs import Costs
    from tpi_bench.virtual import VirtualRuntime, World

COSTS = ("modelled", "measured")
_MAX_REHEARSALS = 5


@dataclass(frozen=True, kw_only=True)
class VirtualTestbed:
    """`num_devices` null is as many as `device=` names. `proportions` strength follows profiles.

    `threads_per_device` is what computations are measured with. `fail_rank` fails at `fail_at_s`.
    """

    num_devices: int | None = None
    cost: str = "modelled"
    threads_per_device: int = 1
    proportions: list[float] | str | None = None
    shares_disk: bool = False
    fail_rank: int | None = None
    fail_at_s: float = 0.0
    trace: bool = False

    clock: ClassVar[str] = "virtual"

    def __post_init__(self) -> None:
        if self.num_devices is not None and self.num_devices < 1:
            raise ValueError(f"testbed.num_devices={self.num_devices} must be at least 1")
        if self.cost not in COSTS:
            raise ValueError(f"testbed.cost={self.cost} is unknown; choose {' or '.join(COSTS)}")
        if self.threads_per_device < 1:
            raise ValueError(
                f"testbed.threads_per_device={self.threads_per_device} must be at least 1"
            )
        if isinstance(self.proportions, str) and self.proportions != "strength":
            raise ValueError(
                f"testbed.proportions={self.proportions} must be a list of numbers, strength or "
                "null"
            )
        if not 0 <= self.fail_at_s < math.inf:
            raise ValueError(f"testbed.fail_at_s={self.fail_at_s} must be at least 0")

    def threads(self, num_devices: int) -> int:
        """Threads of each device's measured computations."""
        return self.threads_per_device

    def cpus(self, num_devices: int, threads: int) -> None:
        """Nothing is pinned."""

    def run(self, job: Job, on_token: Callable[[int], None] | None, cache_dir: Path) -> Outcome:
        """Run the job in virtual time. Tokens are told at the end: it does not last."""
        if self.fail_rank is not None and not 0 <= self.fail_rank < job.num_devices:
            raise ValueError(
                f"testbed.fail_rank={self.fail_rank} must be 0 to {job.num_devices - 1}"
            )
        host = None
        if self.cost == "measured" and any(d.name != "this_host" for d in job.devices):
            from tpi_bench.calibrate import ThisHost

            host = ThisHost(threads=self.threads_per_device).load(cache_dir)
        start_s = time.monotonic()
        try:
            outcome = in_helper(run_virtual, job, self, cache_dir, host, timeout_s=job.timeout_s)
        except TimeoutError:
            reason = f"virtual time had not come to its end after {job.timeout_s:g} s (timeout_s)"
            outcome = Outcome(status="timeout", error=reason)
        outcome.memory_cap, outcome.wall_s = "virtual", time.monotonic() - start_s
        if on_token and outcome.generation is not None and self.cost == "measured":
            for token in outcome.generation.token_ids:
                on_token(token)
        return outcome


def cost_file(cache_dir: Path) -> Path:
    """Where this host's measured costs are kept."""
    return cache_dir / "costs" / f"{provenance.host_key()}.json"


def run_virtual(
    job: Job, testbed: VirtualTestbed, cache_dir: Path, host: DeviceProfile | None
) -> Outcome:
    """Runs in a process of its own: the job, and where costs are measured, rehearsals of it."""
    import torch

    from tpi_bench.costs import MeasuredCosts, ModelledCosts

    torch.set_num_threads(testbed.threads_per_device)
    if testbed.cost == "modelled":
        job = replace(job, request=replace(job.request, eos_ids=()))  # tokens mean nothing
        with torch.device("meta"):
            return _run(job, testbed, ModelledCosts())
    path = cost_file(cache_dir)
    with cache.locked(path):
        costs = MeasuredCosts(path, host or job.devices[0], testbed.threads_per_device)
        for _ in range(_MAX_REHEARSALS):
            outcome = _run(job, testbed, costs)
            if costs.is_complete or outcome.status != "ok":
                break
            costs.save()
    return outcome


def _run(job: Job, testbed: VirtualTestbed, costs: Costs) -> Outcome:
    import torch

    from tpi_bench.device import measure_round_trips
    from tpi_bench.job import Output
    from tpi_bench.runtime import BlockReadError, DeviceLost
    from tpi_bench.virtual import Deadlock, OutOfMemory, World

    world = World(
        job.devices, job.network, costs, shares_disk=testbed.shares_disk, trace=testbed.trace
    )
    if testbed.fail_rank is not None:
        world.fail_at(testbed.fail_rank, round(testbed.fail_at_s * 1e9))
    round_trips: list[int] = []
    logits: list[torch.Tensor] = []

    def program(rt: VirtualRuntime) -> Any:
        round_trips.extend(measure_round_trips(rt, job.network))
        output = Output()
        if rt.rank == 0 and job.logits_path:
            output.on_logits = lambda row: logits.append(row.clone())
        return job.program.run_device(rt, job, output)

    try:
        results = world.run(program)
    except OutOfMemory as error:
        return Outcome(status="oom", error=f"rank {min(world.failed)} {error}")
    except DeviceLost as error:
        return Outcome(status="device_lost", error=str(error))
    except (BlockReadError, Deadlock) as error:
        return Outcome(status="error", error=str(error))
    if logits and job.logits_path:
        torch.save(torch.stack(logits), job.logits_path)
    return Outcome(
        status="ok",
        generation=results[0],
        devices=_reports(world, testbed),
        round_trips_ns=round_trips,
        num_events=world.scheduler.num_events,
    )


def _reports(world: World, testbed: VirtualTestbed) -> list[DeviceReport]:
    return [
        DeviceReport(
            rank=runtime.rank,
            pid=os.getpid(),
            num_threads=testbed.threads_per_device,
            start_anon_bytes=math.nan,
            peak_anon_bytes=math.nan,
            peak_file_bytes=math.nan,
            weight_bytes_read=runtime.bytes_read,
            ledger_bytes=dict(runtime.ledger_bytes),
            read_mode="virtual" if runtime.bytes_read else "none",
            memory_limit_bytes=runtime.device.memory_bytes,
            profile=runtime.device.name,
            spans=[[s.kind, s.key, s.start_ns, s.end_ns] for s in runtime.log.spans],
        )
        for runtime in world.runtimes
    ]
