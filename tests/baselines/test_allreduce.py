"""The collective alone: its closed form as the network's limit, and a time that keeps to it."""

from __future__ import annotations

import itertools

import pytest

from baselines.allreduce import AllreduceSystem
from tests.helpers.virtual import IDEAL, world_of
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Request
from tpi_bench.engine.collectives import COLLECTIVES

SWITCH = NetworkConfig(topology="switch", link_latency_ms=0.5, bandwidth_mbps=8)  # a byte a us
SHAPE = ModelConfig(
    num_layers=1,
    hidden=1000,
    num_heads=1,
    num_kv_heads=1,
    head_dim=1000,
    intermediate=1,
    vocab=1,
    context_length=16,
)


def job_of(system: AllreduceSystem, num_devices: int, dtype: str = "float32") -> Job:
    return Job(
        program=system,
        config=SHAPE,
        dtype=dtype,
        weights=dtype,
        num_devices=num_devices,
        plan=None,
        blocks=[],
        request=Request(prompt_ids=(1,), num_new_tokens=3),
        network=SWITCH,
        threads_per_device=1,
    )


def limit_of(system: AllreduceSystem, job: Job, one_way_s: float = 0.001) -> float:
    return job.network.least_s(system.traffic(job), one_way_s)


def test_the_limit_counts_the_payload_in_its_dtype() -> None:
    """On 3 devices the star passes 4 payloads at the master, of 4 or 2 ms each, and 2 latencies."""
    system = AllreduceSystem()
    for dtype, payload_s in (("float32", 0.004), ("bfloat16", 0.002)):
        job = job_of(system, 3, dtype)
        assert limit_of(system, job) == pytest.approx(0.002 + 4 * payload_s)
        assert system.traffic(job).latencies == 2
    assert limit_of(system, job_of(system, 1)) == 0


@pytest.mark.parametrize(
    ("wire", "dtype", "nbytes"),
    [
        ("float16", "float32", 2000),
        ("float16", "bfloat16", 2000),
        ("q8", "float32", 32 * 34),  # 1000 values are 32 groups, the last one filled up
        ("q8", "bfloat16", 32 * 34),
    ],
)
def test_the_limit_counts_the_payload_as_it_travels(wire: str, dtype: str, nbytes: int) -> None:
    """On 3 devices the star passes 4 payloads at the master; a byte takes a us."""
    system = AllreduceSystem(wire=wire)
    limit_s = limit_of(system, job_of(system, 3, dtype))
    assert limit_s == pytest.approx(0.002 + 4 * nbytes * 1e-6)


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize(
    ("num_devices", "wire"),
    [*((n, "auto") for n in (2, 3, 4, 5, 8, 10)), (4, "float16"), (2, "q8"), (8, "q8")],
)
def test_virtual_times_are_the_closed_form(collective: str, num_devices: int, wire: str) -> None:
    """Devices that compute in no time add nothing, also where a tree's groups are uneven."""
    system = AllreduceSystem(collective=collective, wire=wire)
    job = job_of(system, num_devices)
    world = world_of(*[IDEAL] * num_devices, network=SWITCH)
    found = world.run(lambda rt: system.run_device(rt, job, Output()))
    assert found[1:] == [None] * (num_devices - 1)
    gaps = [after - before for before, after in itertools.pairwise(found[0].token_ns)]
    limit_s = limit_of(system, job, SWITCH.one_way_ns / 1e9)
    assert gaps == [pytest.approx(limit_s * 1e9, rel=2e-3)] * 3  # a third of 1000 is 334
    assert min(gaps) > limit_s * 1e9 - 1


def test_several_in_a_row_take_as_long_each() -> None:
    """Of two devices. Of four, the way back to some overlaps the way there of the others' next:
    one after another pass 6 payloads of the first, and 4 of each that follows."""
    traffic = AllreduceSystem(in_a_row=5).traffic(job_of(AllreduceSystem(), 4))
    assert traffic.serial_bytes == pytest.approx((6 + 4 * 4) / 5 * 4 * SHAPE.hidden)
    system = AllreduceSystem(in_a_row=5)
    world = world_of(IDEAL, IDEAL, network=SWITCH)
    job = job_of(system, 2)
    found = world.run(lambda rt: system.run_device(rt, job, Output()))
    gaps = [after - before for before, after in itertools.pairwise(found[0].token_ns)]
    limit_s = limit_of(system, job, SWITCH.one_way_ns / 1e9)
    assert gaps == [pytest.approx(limit_s * 1e9, rel=2e-3)] * 3
    with pytest.raises(ValueError, match="in_a_row=0 must be at least 1"):
        AllreduceSystem(in_a_row=0)


def test_its_name_in_figures() -> None:
    system = AllreduceSystem(collective="ring")
    assert (system.label, system.variant) == ("allreduce", "")


def test_an_unknown_collective_is_refused() -> None:
    with pytest.raises(ValueError, match="collective=mesh is unknown; choose one of star, tree"):
        AllreduceSystem(collective="mesh")
