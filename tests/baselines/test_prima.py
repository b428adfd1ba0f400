"""The piped ring: its tokens are Transformers', its times those of a trace worked out by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baselines.prima import PrimaSystem, ring_steps, route_of
from tests.helpers.exact import check
from tests.helpers.models_zoo import HALF_GROUPS, WIDE, Variant, make_checkpoint, oracle, prompt_of
from tests.helpers.planned import SMALL, planned_job, with_room
from tests.helpers.running import make_job, run_ok
from tests.helpers.sites import SHAPE, device, site_of
from tests.helpers.virtual import IDEAL, Scripted, answer_of, world_of
from tpi_bench import run
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.engine.rank import run_rank
from tpi_bench.engine.segment_budget import segments_of

SIX, FOUR = {"num_hidden_layers": 6}, {"num_hidden_layers": 4}
TYPED = ("model=debug", "testbed=virtual", "workload.prompt_tokens=4", "workload.num_new_tokens=3")


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of six layers, or four, which several numbers of rounds divide."""
    changes = {"plain": {"head_dim": 8} | SIX, "wide": WIDE | SIX, "half": HALF_GROUPS | FOUR}
    return {
        name: make_checkpoint(tmp_path_factory.mktemp(name), Variant(changes=own))
        for name, own in changes.items()
    }


def ring(**settings: Any) -> PrimaSystem:
    """Layers in proportions that are given."""
    return PrimaSystem(planner="proportional", **settings)


@pytest.mark.parametrize(
    ("shares", "rounds", "window", "length"),
    [
        ([1.0], 1, "off", 20),
        ([1.0], 3, 2, 200),
        ([1.0, 1.0], 1, 2, 1),
        ([1.0, 1.0], 2, "off", 200),
        ([1.0, 1.0], 3, 2, 20),
        ([1.0, 2.0], 2, 1, 200),
        ([5.0, 1.0, 2.0], 1, 3, 200),
        ([1.0, 1.0, 1.0], 2, 2, 1),
    ],
)
def test_tokens_are_those_of_transformers(
    six: dict[str, Path], cache_dir: Path, tmp_path: Path, shares, rounds, window, length
) -> None:
    system = ring(rounds=rounds, window=window)
    count = len(shares)
    check(system, six["plain"], cache_dir, tmp_path, count, length, proportions=shares, here=True)


@pytest.mark.parametrize(
    ("name", "weights", "dtype", "settings"),
    [
        ("wide", "q8", "float32", {"rounds": 2, "window": 2}),
        ("half", "q4", "float32", {"rounds": 2, "window": 1}),
        ("wide", "bfloat16", "bfloat16", {"rounds": 2}),
        ("half", "q8", "bfloat16", {"rounds": 2, "wire": "auto"}),
        ("wide", "float32", "float32", {"rounds": 3, "loading": "mmap", "window": "off"}),
    ],
)
def test_every_precision(
    six: dict[str, Path], cache_dir: Path, tmp_path: Path, name, weights, dtype, settings
) -> None:
    check(
        ring(**settings),
        six[name],
        cache_dir,
        tmp_path,
        2,
        20,
        weights=weights,
        dtype=dtype,
        prefill_chunk=7,
        here=True,
    )


@pytest.mark.parametrize("share", [0.55, 0.65])
@pytest.mark.parametrize("settings", [{}, {"prefetch": False}, {"rounds": 1}], ids=str)
def test_what_memory_keeps_and_what_it_streams(
    six: dict[str, Path], cache_dir: Path, share: float, settings: dict[str, Any]
) -> None:
    request = Request(prompt_ids=prompt_of(20), num_new_tokens=16, warmup_tokens=2)
    system = ring(**({"rounds": 3, "window": "auto"} | settings))
    job = make_job(system, six["plain"], cache_dir, num_devices=2, request=request)
    job = with_room(job, share * sum(block.nbytes for block in job.blocks[0]))
    assert all(system.streaming(job, rank).streamed_bytes for rank in range(2))
    assert answer_of(job).token_ids == oracle(six["plain"], request.prompt_ids, 16)[0]


def test_in_processes_with_sockets_and_direct_reads(six: dict[str, Path], cache_dir: Path) -> None:
    """Three devices and two rounds: six messages of a hidden state a token."""
    request = Request(prompt_ids=prompt_of(20), num_new_tokens=16)
    job = make_job(
        ring(rounds=2, window=2), six["plain"], cache_dir, num_devices=3, request=request
    )
    longer = replace(job, request=replace(request, num_new_tokens=20))
    outcomes = [run_ok(job), run_ok(longer)]
    assert [o.generation and o.generation.token_ids for o in outcomes] == [
        oracle(six["plain"], request.prompt_ids, count)[0] for count in (16, 20)
    ]
    sent = [sum(device.bytes_sent for device in outcome.devices) for outcome in outcomes]
    hidden, header = 4 * job.config.hidden, 24
    assert sent[1] - sent[0] == 4 * (6 * hidden + 2 * header)
    assert outcomes[0].devices[1].weight_bytes_read > 0


@pytest.mark.parametrize(
    ("shares", "rounds", "route", "steps"),
    [
        ([1], 3, [0], 0),
        ([1, 1], 1, [1, 0], 2),
        ([1, 1], 3, [1, 0] * 3, 6),
        ([1, 1, 2], 2, [1, 2, 0] * 2, 6),
    ],
)
def test_the_master_is_at_the_end_of_each_round(shares, rounds, route, steps) -> None:
    shape = replace(SHAPE, num_layers=12)
    plan = ring(rounds=rounds).plan(shape, Site(proportions=shares))
    assert route_of(plan) == route
    assert ring_steps(route) == steps == (rounds * len(shares) if len(shares) > 1 else 0)
    assert sum(len(shards) for shards in plan.shards) == 2 * 12 + 2


def test_steps_where_the_master_has_no_layers_at_the_end() -> None:
    """Then there is one message more, which brings the state to the output head."""
    assert ring_steps([0, 1, 0, 1]) == 4
    assert ring_steps([1, 2, 1, 2]) == 5


def traced_job(prefetch: bool, window: Any, folder: Path, cache_dir: Path) -> Job:
    request = Request(prompt_ids=(1, 2, 3), num_new_tokens=4)
    system = ring(rounds=3, window=window, resident_io=window != "off", prefetch=prefetch)
    network = NetworkConfig(topology="switch", link_latency_ms=0.001)
    return make_job(system, folder, cache_dir, num_devices=2, request=request, network=network)


@pytest.mark.parametrize(
    ("prefetch", "window", "round_ns"),
    [
        (True, 2, 40_000),
        (False, 2, 86_000),
        (True, "off", 26_000),
    ],
)
def test_a_segment_is_loaded_while_the_others_work(
    six: dict[str, Path], cache_dir: Path, prefetch: bool, window: Any, round_ns: int
) -> None:
    """A layer a segment; attention computes 1,000 ns and FFN 10,000, a hop takes 2,000, and a layer
    comes off the disk in 30,000.

    A device that sends at s has its next layer at s + 30,000 and ends it at s + 40,000, as its FFN,
    which comes last, computes 10,000 more: its input was there at s + 22,000, when the other had
    done the same. So a round takes 40,000. Without prefetching each waits for its layer's attention
    and FFN from then on: 30,000 + 11,000 a segment, and 86,000 a round with its hops. Where all is
    held, 11,000 and 26,000.
    """
    job = traced_job(prefetch, window, six["plain"], cache_dir)
    layer = sum(block.nbytes for block in job.blocks[1][:2])
    profile = replace(IDEAL, disk_gb_per_s=layer / 30_000)
    world = world_of(profile, profile, network=job.network, costs=Scripted(attn=1_000, ffn=10_000))
    generation = world.run(lambda rt: run_rank(rt, job))[0].generation
    assert generation is not None
    assert generation.token_ids == oracle(six["plain"], (1, 2, 3), 4)[0]
    gaps = [after - before for before, after in itertools.pairwise(generation.token_ns)]
    assert gaps == pytest.approx([3 * round_ns] * 3, abs=20)  # a layer is no whole number of ns


def test_a_segment_has_room_beside_what_is_kept() -> None:
    """What streams of one segment is as large as the area, so that all of it is loaded ahead; with
    one round there is room for a block.
    """
    for rounds, whole in ((3, True), (1, False)):
        system = ring(rounds=rounds, window="auto")
        job = planned_job(system=system, num_devices=2)
        job = with_room(job, 0.7 * sum(block.nbytes for block in job.blocks[1]))
        plan = system.streaming(job, 1)
        sizes = {index: part.nbytes for index, part in enumerate(plan.streamed) if part is not None}
        of_segments = [
            sum(sizes.get(index, 0) for index in segment) for segment in segments_of(job.blocks[1])
        ]
        assert len(of_segments) == rounds
        assert plan.area_bytes == (max(of_segments) if whole else max(sizes.values()))
        assert plan.kept_bytes + plan.area_bytes <= 0.7 * sum(b.nbytes for b in job.blocks[1])


def test_a_memory_smaller_than_a_segment_keeps_nothing() -> None:
    system = ring(rounds=2, window="auto")
    job = planned_job(replace(SMALL, num_layers=12), system=system, num_devices=2)
    largest = max(block.nbytes for block in job.blocks[1])
    segment = sum(job.blocks[1][index].nbytes for index in segments_of(job.blocks[1])[0])
    assert largest < 0.6 * segment
    plan = system.streaming(with_room(job, 0.6 * segment), 1)
    assert not plan.kept_bytes
    assert largest < plan.area_bytes <= 0.6 * segment


def test_without_a_known_memory_all_is_held() -> None:
    system = ring(rounds=2, window="auto")
    assert not system.streaming(planned_job(system=system, num_devices=2), 1).streamed_bytes


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "prima"),
        ({"rounds": 4, "prefetch": False}, "prima rounds 4 no prefetch"),
        ({"planner": "waterfill", "window": 2}, "prima window 2 waterfill"),
        ({"wire": "q8", "window": "auto"}, "prima wire q8"),
    ],
)
def test_names_in_figures(settings: dict[str, Any], line: str) -> None:
    system = PrimaSystem(**({"window": "auto"} | settings))
    assert f"{system.label} {system.variant}".strip() == line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rounds": 0}, "system.rounds=0 must be a whole number of at least 1, or auto"),
        ({"rounds": "two"}, "system.rounds=two must be"),
        ({"rounds": True}, "system.rounds=True must be"),
        ({"planner": "best"}, "system.planner=best is unknown; choose one of proportional"),
        ({"objective": "time"}, "system.objective=time is unknown; choose one of code, paper"),
    ],
)
def test_what_is_no_choice_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        PrimaSystem(**settings)


def shape_of(num_layers: int) -> ModelConfig:
    return replace(SHAPE, num_layers=num_layers)


def test_rounds_that_do_not_divide_the_layers() -> None:
    with pytest.raises(ValueError, match=r"rounds=5 .* 12 layers; choose one of 1, 2, 3, 4, 6, 12"):
        ring(rounds=5).plan(shape_of(12), Site(proportions=[1, 1]))


def test_more_devices_than_layers_of_a_round() -> None:
    with pytest.raises(ValueError, match="2 cannot be cut into 3 parts; use fewer devices"):
        ring(rounds=6).plan(shape_of(12), Site(proportions=[1, 1, 1]))


def test_rounds_of_other_planners() -> None:
    """One where all is held, else two, if two divide the layers."""
    enough = [device("a", 1.0, 100), device("b", 1.0, 100)]
    short = [device("a", 1.0, 0.5), device("b", 1.0, 0.5)]
    system = PrimaSystem(planner="memory", window="auto")
    assert route_of(system.plan(shape_of(12), site_of(enough))) == [1, 0]
    assert route_of(system.plan(shape_of(12), site_of(short))) == [1, 0] * 2
    assert route_of(system.plan(shape_of(9), site_of(short))) == [1, 0] * 3
    assert route_of(system.plan(shape_of(7), site_of(short))) == [1, 0]


def test_halda_chooses_devices_and_rounds() -> None:
    """The slow device gets one layer and is dropped; kept, it has it."""
    devices = [device("a", 1.0, 100), device("b", 9.0, 100), device("c", 0.1, 100)]
    site = site_of(devices)
    assert route_of(PrimaSystem(window="auto").plan(shape_of(8), site)) == [1, 0]
    kept = PrimaSystem(window="auto", choose_devices=False).plan(shape_of(8), site)
    assert route_of(kept) == [1, 2, 0]
    twice = PrimaSystem(window="auto", rounds=2).plan(shape_of(8), site)
    assert route_of(twice) == [1, 0, 1, 0]


def test_halda_with_everything_held() -> None:
    """With window=off no device has more than it holds, and too much is refused."""
    devices = [device("a", 1.0, 1.2), device("b", 9.0, 0.9)]
    plan = PrimaSystem(window="off").plan(shape_of(8), site_of(devices))
    assert len(plan.shards[1]) // 2 == 5
    with pytest.raises(ValueError, match="of layers do not fit in the devices' memory"):
        PrimaSystem(window="off").plan(shape_of(20), site_of(devices))


def test_as_it_is_typed() -> None:
    typed = ("system=prima", "testbed.num_devices=2", *TYPED)
    assert run(*typed).row.label == "prima"
    short = run(*typed, "system.planner=memory", "device.memory_mb=0.6")
    assert (short.status, short.row.variant) == ("ok", "memory")
    assert short.row.streamed_bytes > 0
    twice = run(*typed, "system.planner=memory", "device.memory_mb=0.6", "system.prefetch=false")
    assert twice.row.variant == "memory no prefetch"
    assert twice.row.token_latency_s > short.row.token_latency_s
    for line, words in (
        (
            "system.rounds=3",
            r"^system.rounds=3 does not divide the model's 4 layers; choose one of",
        ),
        ("system.planner=exo", r"^system.planner=exo is unknown; choose one of proportional, edge"),
    ):
        with pytest.raises(ValueError, match=words):
            run(*typed, line)


@pytest.mark.parametrize("planner", ["halda", "waterfill", "memory"])
def test_a_pipeline_is_planned_so_too(planner: str) -> None:
    typed = ("system=pipeline", "testbed.num_devices=2", *TYPED)
    result = run(*typed, f"system.planner={planner}")
    assert (result.status, result.row.system_settings["planner"]) == ("ok", planner)
