"""Tensor parallelism inside groups, a pipeline between: tokens, times by hand, and refusals."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from baselines.hybrid import HybridSystem, hybrid_steps
from baselines.pipeline import PipelineSystem
from tests.helpers.exact import check
from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.running import make_job, run_ok
from tests.helpers.sites import SHAPE
from tests.helpers.virtual import IDEAL, Scripted, world_of
from tpi_bench import run
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.rank import run_rank
from tpi_bench.engine.tpi import TpiSystem, token_steps

TYPED = ("model=debug", "testbed=virtual", "workload.prompt_tokens=4", "workload.num_new_tokens=3")


@pytest.mark.parametrize(
    ("size", "shares", "settings", "length"),
    [
        (1, [1.0, 1.0], {}, 20),
        (2, [1.0, 1.0], {"collective": "ring"}, 20),
        (2, [1.0] * 4, {"window": 2}, 200),
        (2, [1.0] * 4, {"collective": "direct"}, 1),
        (2, [3.0, 1.0, 1.0, 2.0], {"collective": "ring", "window": 1}, 200),
        (3, [1.0] * 6, {"collective": "tree"}, 20),
        (4, [1.0] * 8, {"collective": "star", "retain_every": 2, "window": 2}, 1),
    ],
)
def test_tokens_are_those_of_transformers(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    size: int,
    shares: list[float],
    settings: dict[str, Any],
    length: int,
) -> None:
    check(
        HybridSystem(group_size=size, **settings),
        checkpoints["gqa"],
        cache_dir,
        tmp_path,
        len(shares),
        length,
        proportions=shares,
        here=True,
    )


@pytest.mark.parametrize(
    ("name", "weights", "dtype", "collective"),
    [
        ("wide", "q8", "float32", "direct"),
        ("wide", "q4", "float32", "star"),
        ("wide", "bfloat16", "bfloat16", "ring"),
    ],
)
def test_every_precision(
    wide: Path, cache_dir: Path, tmp_path: Path, name, weights, dtype, collective
) -> None:
    check(
        HybridSystem(collective=collective),
        wide,
        cache_dir,
        tmp_path,
        4,
        20,
        weights=weights,
        dtype=dtype,
        prefill_chunk=7,
        here=True,
    )


@pytest.mark.parametrize("collective", ["star", "direct"])
def test_in_processes_in_8_bits_on_the_wire(wide: Path, cache_dir: Path, collective: str) -> None:
    """All go on with the same bits, so that two runs give the same tokens, near those of fp32."""
    request = Request(prompt_ids=prompt_of(20), num_new_tokens=6)
    system = HybridSystem(collective=collective, wire="q8")
    job = make_job(system, wide, cache_dir, num_devices=4, request=request)
    first, second = (run_ok(job).generation for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.token_ids == second.token_ids
    exact = make_job(
        HybridSystem(collective=collective), wide, cache_dir, num_devices=4, request=request
    )
    generation = run_ok(exact).generation
    assert generation is not None
    assert generation.token_ids == oracle(wide, request.prompt_ids, 6)[0]


@pytest.mark.parametrize(("collective", "gap_us"), [("star", 2155), ("direct", 1255)])
def test_a_token_by_hand(
    checkpoints: dict[str, Path], cache_dir: Path, collective: str, gap_us: int
) -> None:
    """Four devices in two groups; a message takes 100 us, attention 1 us, an FFN 10; five layers.

    Star: the embedding's way, ten sums there and back but for the way back of the last of each
    group, one message to all of the next group and one to the master: 1 + 20 - 2 + 2 of 100 us.
    Direct: ten sums of one message, and the same two; the embedding's way hides behind the sums.
    Layers compute 55 us.
    """
    request = Request(prompt_ids=(1, 2, 3), num_new_tokens=4)
    network = NetworkConfig(topology="switch", link_latency_ms=0.05)
    system = HybridSystem(collective=collective)
    job = make_job(
        system, checkpoints["gqa"], cache_dir, num_devices=4, request=request, network=network
    )
    world = world_of(*[IDEAL] * 4, network=network, costs=Scripted(attn=1_000, ffn=10_000))
    generation = world.run(lambda rt: run_rank(rt, job))[0].generation
    assert generation is not None
    gaps = [b - a for a, b in itertools.pairwise(generation.token_ns)]
    assert gaps == [gap_us * 1_000] * 3


def test_steps_of_a_token() -> None:
    """One group is TPI, groups of one a pipeline."""
    for collective in COLLECTIVES.values():
        assert hybrid_steps(collective, 4, 1, 10) == token_steps(collective, 4, 10)
        assert hybrid_steps(collective, 1, 4, 10) == 4
    star, direct = COLLECTIVES["star"], COLLECTIVES["direct"]
    assert hybrid_steps(star, 2, 2, 5) == 1 + 20 - 2 + 2
    assert hybrid_steps(direct, 2, 2, 5) == 10 + 2


def test_the_ends_are_tpi_and_the_pipeline() -> None:
    site = Site(proportions=[1.0, 2.0, 1.0, 2.0])
    whole, single = HybridSystem(group_size=4), HybridSystem(group_size=1)
    assert whole.plan(SHAPE, site).shards == TpiSystem().plan(SHAPE, site).shards
    assert single.plan(SHAPE, site).shards == PipelineSystem().plan(SHAPE, site).shards
    plan = HybridSystem().plan(SHAPE, site)
    assert plan.teams == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("size", "devices", "words"),
    [
        (3, 4, r"group_size=3 does not divide testbed.num_devices=4; choose one of 1, 2, 4$"),
        (5, 10, r"^system.group_size=5 is more than the model's 4 attention heads"),
        (1, 9, r"groups of 1 are more groups than the model's 8 layers"),
    ],
)
def test_what_cannot_be_divided_is_refused(size: int, devices: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HybridSystem(group_size=size).plan(SHAPE, Site(proportions=[1.0] * devices))


def test_as_it_is_typed() -> None:
    typed = ("system=hybrid", "testbed.num_devices=4", *TYPED)
    result = run(*typed, "system.collective=direct", "system.window=2")
    assert result.status == "ok"
    assert (result.row.label, result.row.variant) == ("hybrid direct", "groups of 2 window 2")
    with pytest.raises(ValueError, match=r"^system.group_size=0 must be at least 1$"):
        run(*typed, "system.group_size=0")
