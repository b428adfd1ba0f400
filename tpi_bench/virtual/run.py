"""One job in virtual time, from its start to its outcome. Runs in the testbed's helper process.

Where costs are measured, a run rehearses until every computation is charged by the file of costs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import math
import os
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from tpi_bench.contract.job import DeviceReport, Job, Outcome
from tpi_bench.contract.request import Generation
from tpi_bench.contract.rounds import in_round
from tpi_bench.contract.runtime import BlockReadError, DeviceLost
from tpi_bench.engine.matrix import kernel_name
from tpi_bench.engine.rank import run_rank
from tpi_bench.host import cache, machine
from tpi_bench.host.memory import keep_freed_memory
from tpi_bench.virtual.costs import Costs, MeasuredCosts, ModelledCosts, RecalledCosts, Traced
from tpi_bench.virtual.runtime import OutOfMemory, VirtualRuntime
from tpi_bench.virtual.scheduler import Deadlock
from tpi_bench.virtual.without_data import without_data
from tpi_bench.virtual.world import Shared, World

_MAX_REHEARSALS = 8
_MOST_REMEMBERED = 256  # jobs with other computations, each of some dozen kinds
_COSTS_VERSION = 10  # goes up with what a key means, what computes it, and what the file holds


def run_virtual(
    job: Job,
    cache_dir: Path,
    *,
    cost: str,
    shares_disk: bool = False,
    shares_memory: bool = False,
    failure: tuple[int, float] | None = None,
    interval: bool = False,
    remembers: bool = False,
) -> Outcome:
    """The job, and rehearsals of it where costs are measured.

    `failure` is a rank and the time, in seconds, at which it is gone. With `interval` it is run
    again with what devices did in each round of their calibration. With `remembers`, what an
    earlier run in this process traced of the same computations is not traced again.
    """
    torch.set_num_threads(job.threads_per_device)
    shared = Shared(disk=shares_disk, memory=shares_memory)
    if cost == "modelled":
        job = _without_meaning(job)
        modelled = ModelledCosts(_traced_before(_computations_of(job)) if remembers else None)
        with without_data(), _uncollected():
            outcome = _run(job, modelled, shared, failure)
            if interval and outcome.status == "ok":
                outcome.by_round = _by_round(job, modelled, shared)
            return outcome
    path = cost_file(cache_dir)
    keep_freed_memory()  # as devices do
    with cache.locked(path):
        kernel = kernel_name(job.weights)
        costs = MeasuredCosts(
            path, job.host or job.profiles[0], job.threads_per_device, kernel=kernel
        )
        for _ in range(_MAX_REHEARSALS):
            outcome = _run(job, costs, shared, failure)
            if outcome.status != "ok":
                break
            is_complete = costs.is_complete
            costs.save()
            if is_complete:
                break
    if interval and outcome.status == "ok":
        with without_data(), _uncollected():
            recalled = RecalledCosts(costs)
            outcome.by_round = _by_round(_without_meaning(job), recalled, shared)
    return outcome


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Python's collector looks through all ranks again for every few hundred new messages, which
    takes a third of a simulation; without data hardly anything is left for it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _without_meaning(job: Job) -> Job:
    """On the meta device no token ends an answer."""
    return replace(job, request=replace(job.request, eos_ids=()))


def _by_round(job: Job, costs: Costs, shared: Shared) -> list[Generation]:
    """The run with the devices as each round of their calibration found them."""
    num_rounds = max(len(profile.rounds) for profile in job.profiles)
    found = []
    for number in range(num_rounds):
        profiles = tuple(in_round(profile, number) for profile in job.profiles)
        outcome = _run(replace(job, profiles=profiles, trace=False), costs, shared, None)
        if outcome.generation is not None:
            found.append(outcome.generation)
    return found


def _computations_of(job: Job) -> str:
    """Names all that a job's computations follow from: what the run as a whole is of.

    In one run a key tells computations apart, whatever ranks they are of; in another run the same
    key may stand for something else, unless all of this is the same.
    """
    layouts = {id(block.tensors): block.tensors for blocks in job.blocks for block in blocks}
    whole = (job.program, job.config, job.dtype, job.weights, job.num_devices)
    parts = (*whole, job.plan, job.request, list(layouts.values()))
    return hashlib.sha256(pickle.dumps(parts)).hexdigest()


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _traced_before(computations: str) -> Traced:
    """What is known of them, to which more is added."""
    return {}


def cost_file(cache_dir: Path) -> Path:
    """Where this host's measured costs are kept."""
    return cache_dir / "costs" / f"{machine.host_key()}-{_COSTS_VERSION}.json"


def _run(job: Job, costs: Costs, shared: Shared, failure: tuple[int, float] | None) -> Outcome:
    kernel = kernel_name(job.weights) if isinstance(costs, MeasuredCosts) else "modelled"
    world = World(job.profiles, job.network, costs, shared, trace=job.trace)
    if failure is not None:
        rank, time_s = failure
        world.fail_at(rank, round(time_s * 1e9))
    try:
        master, *_ = world.run(lambda rt: run_rank(rt, job))
    except OutOfMemory as error:
        return Outcome(status="oom", error=f"rank {min(world.failed)} {error}")
    except DeviceLost as error:
        return Outcome(status="device_lost", error=str(error))
    except (BlockReadError, Deadlock) as error:
        return Outcome(status="error", error=str(error))
    except Exception as error:  # a system of somebody's own raises anything, as on real devices
        rank = min(world.failed, default=0)
        traceback.print_exception(error)
        return Outcome(status="error", error=f"rank {rank} failed: {_said(error)}")
    return Outcome(
        status="ok",
        generation=master.generation,
        devices=[_report(rt, job.threads_per_device, kernel) for rt in world.runtimes],
        round_trips_ns=master.round_trips_ns,
        num_events=world.num_events,
    )


def _said(error: Exception) -> str:
    """In a line, with the place in the file where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words} ({frame.filename}:{frame.lineno})"


def _report(rt: VirtualRuntime, num_threads: int, kernel: str) -> DeviceReport:
    return DeviceReport(
        rank=rt.rank,
        pid=os.getpid(),
        num_threads=num_threads,
        kernel=kernel,
        start_anon_bytes=math.nan,
        peak_anon_bytes=math.nan,
        peak_file_bytes=math.nan,
        weight_bytes_read=rt.bytes_read,
        bytes_sent=rt.bytes_sent,
        bytes_received=rt.bytes_received,
        ledger_bytes=dict(rt.ledger_bytes),
        read_mode="virtual" if rt.bytes_read else "none",
        memory_limit_bytes=rt.profile.memory_bytes,
        profile=rt.profile.name,
        spans=rt.log.spans,
    )
