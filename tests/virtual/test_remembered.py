"""What one run has traced serves the next of the same computations, and no other."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.planned import SMALL, planned_job
from tests.helpers.virtual import IDEAL
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Generation
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.virtual import costs
from tpi_bench.virtual.run import run_virtual

SLOW = replace(IDEAL, name="slow", memory_gb_per_s=1.0, peak_gflops=1.0, op_overhead_us=3.0)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every computation that is traced."""
    found: list[object] = []
    count_work = costs.count_work

    def counted(fn: Any) -> Any:
        found.append(fn)
        return count_work(fn)

    monkeypatch.setattr(costs, "count_work", counted)
    return found


def job_of(
    system: Any = None, num_devices: int = 2, profile: DeviceProfile = SLOW, **extra: Any
) -> Job:
    system = system or TpiSystem()
    network = extra.pop("network", NetworkConfig())
    job = planned_job(system=system, num_devices=num_devices, **extra)
    return replace(job, profiles=(profile,) * num_devices, network=network)


def times_of(job: Job, *, remembers: bool) -> tuple[list[int], list[dict[str, int]]]:
    outcome = run_virtual(job, Path(), cost="modelled", remembers=remembers)
    assert outcome.status == "ok", outcome.error
    assert outcome.generation is not None
    return outcome.generation.token_ns, outcome.generation.account


def test_the_same_computations_are_traced_once(traced: list[object]) -> None:
    """On other devices and another network they cost something else, and are the same."""
    first = times_of(job_of(), remembers=True)
    assert traced
    traced.clear()
    assert times_of(job_of(), remembers=True) == first
    faster = replace(SLOW, memory_gb_per_s=2.0, peak_gflops=2.0)
    network = NetworkConfig(topology="switch", link_latency_ms=1)
    changes = ({"profile": faster}, {"network": network})
    others = [times_of(job_of(**change), remembers=True) for change in changes]
    assert not traced
    assert others == [times_of(job_of(**change), remembers=False) for change in changes]
    assert len({str(times) for times in (first, *others)}) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "q8"},
        {"num_prompt": 9},
        {"num_devices": 1},
        {"system": TpiSystem(collective="direct")},
        {"config": replace(SMALL, intermediate=352)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_others_are_traced_anew(traced: list[object], other: dict[str, Any]) -> None:
    times_of(job_of(), remembers=True)
    traced.clear()
    found = times_of(job_of(**other), remembers=True)
    assert len(traced) > 5
    assert found == times_of(job_of(**other), remembers=False)


@dataclass(frozen=True, kw_only=True)
class Vague(TpiSystem):
    """Its key says too little for any run but this one."""

    size: int

    def run_device(self, rt: Any, job: Job, output: Output) -> Generation | None:
        tensor = torch.empty(self.size, job.config.hidden)
        rt.compute(("vague",), lambda: tensor + tensor)
        if rt.rank:
            return None
        return Generation(token_ids=[0], request_ns=0, token_ns=[rt.now()], account=[])


def test_a_key_stands_for_nothing_else_in_another_run() -> None:
    small, large = (
        times_of(job_of(Vague(size=size), num_devices=1), remembers=True)[0][0]
        for size in (100_000, 200_000)
    )
    assert large > 1.9 * small


def test_the_collector_rests_while_devices_run_and_is_as_it_was_then() -> None:
    seen: list[bool] = []

    class Watching(TpiSystem):
        def run_device(self, rt: Any, job: Job, output: Output) -> Generation | None:
            seen.append(gc.isenabled())
            if "fails" in self.name:
                raise RuntimeError("as asked")
            return super().run_device(rt, job, output)

    assert gc.isenabled()
    times_of(job_of(Watching()), remembers=False)
    assert seen == [False, False]
    assert gc.isenabled()
    failed = run_virtual(job_of(Watching(name="fails")), Path(), cost="modelled")
    assert failed.status == "error"
    assert failed.error is not None
    assert re.match(r"rank . failed: RuntimeError: as asked \(.*test_remembered", failed.error)
    assert gc.isenabled()
    gc.disable()
    times_of(job_of(Watching()), remembers=False)
    assert not gc.isenabled()
    gc.enable()
