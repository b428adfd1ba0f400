"""Virtual devices for tests: a world of ideal ones with scripted computations, and whole jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.helpers.models_zoo import prompt_of
from tests.helpers.running import make_job
from tpi_bench.contract.device import DeviceProfile, ideal_device
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.runtime import Key
from tpi_bench.engine.rank import run_rank
from tpi_bench.virtual.run import run_virtual
from tpi_bench.virtual.world import World

US, MS = 1_000, 1_000_000
IDEAL = ideal_device("this_host")
PAPER = NetworkConfig(topology="paper", link_latency_ms=1)
REQUEST = Request(prompt_ids=prompt_of(20), num_new_tokens=12)


class Scripted:
    """Everything really runs and takes a fixed time by its kind; what is not named takes none."""

    def __init__(self, **times_ns: int) -> None:
        self._times_ns = times_ns

    def run(
        self, key: Key, fn: Callable[[], Any], profile: DeviceProfile, idle_ns: int = 0
    ) -> tuple[Any, int]:
        return fn(), self._times_ns.get(str(key[0]), 0)


def no_work() -> None:
    """What a scripted computation does."""


def world_of(*profiles: DeviceProfile, network: NetworkConfig | None = None, **extra: Any) -> World:
    """All spans are kept; `costs` are scripted ones of no time unless others are given."""
    costs = extra.pop("costs", None) or Scripted()
    return World(profiles, network or NetworkConfig(), costs, trace=True, **extra)


def virtual_job(
    system: Any,
    folder: Path,
    cache_dir: Path,
    num_devices: int,
    profile: DeviceProfile = IDEAL,
    **extra: Any,
) -> Job:
    job = make_job(system, folder, cache_dir, num_devices=num_devices, request=REQUEST, **extra)
    return replace(job, profiles=(profile,) * num_devices)


def answer_of(job: Job) -> Generation:
    """What a job's program really computes in this process, where time does not matter."""
    world = World((IDEAL,) * job.num_devices, job.network, Scripted())
    with _threads_kept():
        torch.set_num_threads(job.threads_per_device)
        generation = world.run(lambda rt: run_rank(rt, job))[0].generation
    return generation or Generation(token_ids=[], request_ns=0, token_ns=[], account=[])


def run_here(
    job: Job, cache_dir: Path, *, cost: str = "modelled", trace: bool = False, **settings: Any
) -> Outcome:
    """In this process, which keeps its number of threads."""
    with _threads_kept():
        return run_virtual(replace(job, trace=trace), cache_dir, cost=cost, **settings)


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
