"""Whole jobs in virtual time: the oracle's tokens, repeatable times, and what is charged for."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baselines.galaxy import GalaxySystem
from baselines.pipeline import PipelineSystem
from tests.helpers.models_zoo import oracle
from tests.helpers.running import checkpoint_of, run_ok
from tests.helpers.virtual import IDEAL, PAPER, REQUEST, run_here, virtual_job
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.streaming import WindowedSystem
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.models.block_layout import planned_blocks
from tpi_bench.virtual.run import cost_file

REAL = DeviceProfile(
    name="real",
    cores=4,
    memory_gb=1,
    memory_gb_per_s=10,
    peak_gflops=50,
    op_overhead_us=3,
    disk_gb_per_s=0.5,
    disk_latency_us=80,
    disk_queue_depth=4,
    message_overhead_us=15,
)

SYSTEMS = [
    (num_devices, system)
    for num_devices, (window, retain) in itertools.product((2, 4), (("off", 0), (2, 0), (2, 2)))
    for system in (
        *(
            TpiSystem(collective=collective, window=window, retain_every=retain)
            for collective in COLLECTIVES
        ),
        PipelineSystem(window=window, retain_every=retain),
    )
]
SYSTEMS += [
    (3, GalaxySystem()),
    (2, TpiSystem(loading="mmap")),
    (1, TpiSystem(loading="blocking", resident_io=True)),
    (1, TpiSystem(loading="faulted", resident_io=True)),
    (2, TpiSystem(loading="faulted")),
    (2, PipelineSystem(loading="blocking")),
    (3, PipelineSystem(loading="mmap")),
]


def system_id(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    parts = [value.name]
    parts += [str(getattr(value, n, "")) for n in ("collective", "window", "retain_every")]
    return "-".join([*parts, getattr(value, "loading", "")])


@pytest.mark.parametrize(("num_devices", "system"), SYSTEMS, ids=system_id)
def test_measured_runs_give_the_oracles_tokens(
    checkpoints: dict[str, Path], cache_dir: Path, num_devices: int, system: Any
) -> None:
    job = virtual_job(system, checkpoints["gqa"], cache_dir, num_devices)
    outcome = run_here(job, cache_dir, cost="measured")
    assert outcome.status == "ok", outcome.error
    assert outcome.generation is not None
    assert (
        outcome.generation.token_ids
        == oracle(checkpoints["gqa"], REQUEST.prompt_ids, REQUEST.num_new_tokens)[0]
    )
    assert ("window" in outcome.devices[0].ledger_bytes) == (
        isinstance(system, WindowedSystem) and system.window_config.size is not None
    )


def modelled(
    folder: Path,
    cache_dir: Path,
    system: Any = None,
    seed: int = 0,
    profile: DeviceProfile = REAL,
    **settings: Any,
) -> Outcome:
    network = NetworkConfig(
        topology="paper", link_latency_ms=0.1, jitter_ms=0.05, bandwidth_mbps=100, seed=seed
    )
    system = system or TpiSystem(collective="ring", window=2)
    job = virtual_job(system, folder, cache_dir, 4, profile, network=network)
    if settings.get("cost") != "measured":  # no files are needed
        assert job.plan is not None
        job = replace(job, blocks=planned_blocks(job.config, job.plan, "float32", "float32"))
    return run_here(job, cache_dir, trace=True, **settings)


def test_two_modelled_runs_are_identical(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    first, second, other = (
        modelled(checkpoints["gqa"], cache_dir, seed=seed) for seed in (0, 0, 1)
    )
    assert first.status == "ok", first.error
    assert first.generation == second.generation
    assert first.num_events == second.num_events
    assert first.round_trips_ns == second.round_trips_ns
    for one, same in zip(first.devices, second.devices, strict=True):
        assert one.ledger_bytes == same.ledger_bytes
        assert one.spans
        assert one.spans == same.spans
    assert other.generation != first.generation  # jitter


def test_measured_costs_are_kept(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The first run rehearses until it is charged by the file, so the second one is the same."""
    job = virtual_job(TpiSystem(window=2), checkpoints["gqa"], tmp_path, 2, network=PAPER)
    first, second = (run_here(job, tmp_path, cost="measured") for _ in range(2))
    assert first.generation is not None
    assert first.generation == second.generation
    assert sum(kinds["compute"] for kinds in first.generation.account) > 0


@pytest.mark.parametrize("weights", ["float16", "q8", "q4"])
def test_measured_runs_of_other_weights_have_costs_of_their_own(
    wide: Path, tmp_path: Path, weights: str
) -> None:
    """The tokens are those of real devices, and no cost is that of other weights."""
    dtype = "float16" if weights == "float16" else "float32"
    system = TpiSystem(collective="direct")
    entries = []
    for held, computed in (("float32", "float32"), (weights, dtype)):
        job = virtual_job(system, wide, tmp_path, 2, weights=held, dtype=computed)
        outcome = run_here(job, tmp_path, cost="measured")
        assert outcome.status == "ok", outcome.error
        entries.append(json.loads(cost_file(tmp_path).read_text()))
    assert outcome.generation == run_here(job, tmp_path, cost="measured").generation
    assert outcome.generation is not None
    real = run_ok(replace(job, profiles=()))
    assert real.generation is not None
    assert outcome.generation.token_ids == real.generation.token_ids
    before, after = entries
    assert all(after[name] == cost for name, cost in before.items())  # all keys are its own
    held_by = {operator[2] for cost in after.values() for operator in cost["work"]}
    assert held_by == {None, "float32", weights}


def test_a_device_that_unpacks_slowly_is_slower_with_quantised_weights(wide: Path) -> None:
    """Of one that has memory's rate at 4 bits, and one that has a hundredth of it."""
    ends: dict[tuple[str, float | None], int] = {}
    for held in ("float32", "q4"):
        for rate in (None, 0.1):
            profile = replace(REAL, q4_gb_per_s=rate)
            job = planned_job(wide, profile, held)
            outcome = run_here(job, Path("unused"))
            assert outcome.generation is not None, outcome.error
            ends[held, rate] = outcome.generation.token_ns[-1]
    assert ends["float32", None] == ends["float32", 0.1]
    assert ends["q4", None] < ends["float32", None]
    assert ends["q4", 0.1] > ends["float32", None]


def planned_job(folder: Path, profile: DeviceProfile, weights: str) -> Job:
    """Two devices under TPI, without files."""
    config = checkpoint_of(folder).config
    plan = TpiSystem().plan(config, Site(proportions=[1.0, 1.0], weights=weights))
    return Job(
        program=TpiSystem(),
        config=config,
        dtype="float32",
        weights=weights,
        num_devices=2,
        plan=plan,
        blocks=planned_blocks(config, plan, weights, "float32"),
        request=REQUEST,
        network=NetworkConfig(),
        threads_per_device=1,
        profiles=(profile,) * 2,
    )


def test_a_shared_disk_is_slower(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """Four devices at a disk that bounds them take nearly four times as long."""
    profile = replace(REAL, disk_gb_per_s=0.001)
    ends = []
    for shares_disk in (False, True):
        outcome = modelled(checkpoints["gqa"], cache_dir, profile=profile, shares_disk=shares_disk)
        assert outcome.generation is not None
        ends.append(outcome.generation.token_ns[-1])
    assert 2 < ends[1] / ends[0] < 4


def test_a_tokens_account_is_its_time(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """Virtual time passes only in what is logged, and in Python between."""
    profile = replace(REAL, step_overhead_us=0.0)
    generation = modelled(checkpoints["gqa"], cache_dir, profile=profile).generation
    assert generation is not None
    times = [generation.request_ns, *generation.token_ns]
    assert [sum(kinds.values()) for kinds in generation.account] == [
        after - before for before, after in itertools.pairwise(times)
    ]


@pytest.mark.parametrize("window", ["off", 2])
def test_modelled_and_measured_hold_and_read_the_same_bytes(
    checkpoints: dict[str, Path], cache_dir: Path, window: Any
) -> None:
    found = []
    for cost in ("modelled", "measured"):
        system = TpiSystem(window=window)
        outcome = modelled(checkpoints["gqa"], cache_dir, system, cost=cost)
        assert outcome.status == "ok", outcome.error
        found.append([(d.ledger_bytes, d.weight_bytes_read) for d in outcome.devices])
    assert found[0] == found[1]


def test_failures_of_a_job_are_told(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    lost = modelled(checkpoints["gqa"], cache_dir, failure=(2, 0.02))
    assert (lost.status, lost.error) == (
        "device_lost",
        "rank 2 failed at 0.02 s of virtual time, as asked",
    )
    late = modelled(checkpoints["gqa"], cache_dir, failure=(2, 1000))
    assert late.generation == modelled(checkpoints["gqa"], cache_dir).generation
    small = virtual_job(TpiSystem(), checkpoints["gqa"], cache_dir, 2)
    tight = replace(small, profiles=(IDEAL, replace(IDEAL, name="tight", memory_gb=1e-5)))
    full = run_here(tight, cache_dir)
    assert full.status == "oom"
    assert (full.error or "").startswith("rank 1 needs")
