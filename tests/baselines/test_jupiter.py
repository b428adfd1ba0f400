"""A prompt in chunks: its planner against every way, its tokens, and its times by hand."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baselines.jupiter import JupiterSystem
from baselines.jupiter_plan import (
    PromptCuts,
    StageCost,
    equal_lengths,
    plan_layers,
    prompt_s,
)
from tests.helpers.exact import check
from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.planned import LLAMA2_70B
from tests.helpers.running import make_job, run_ok
from tests.helpers.sites import SHAPE, device, site_of
from tests.helpers.virtual import IDEAL, Scripted, answer_of, world_of
from tpi_bench import run
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import DoesNotFit
from tpi_bench.contract.request import Request
from tpi_bench.engine.rank import run_rank

WORKER = DeviceProfile(
    name="worker",
    cores=4,
    memory_gb=8,
    memory_gb_per_s=20,
    peak_gflops=100,
    op_overhead_us=5,
    disk_gb_per_s=1,
    disk_latency_us=100,
    disk_queue_depth=4,
    message_overhead_us=10,
)
TYPED = ("model=debug", "testbed=virtual", "workload.prompt_tokens=40", "workload.num_new_tokens=3")


def even(**settings: Any) -> JupiterSystem:
    """Without anything that asks what devices can do."""
    return JupiterSystem(**({"planner": "proportional", "lengths": "equal"} | settings))


@pytest.mark.parametrize("seed", range(10))
def test_no_stages_are_better(seed: int) -> None:
    draw = random.Random(seed)
    count, num_layers = draw.choice([2, 3, 4]), 7
    layer_s = [draw.uniform(1, 5) for _ in range(count)]
    rooms = [draw.uniform(1, 6) for _ in range(count)]
    chunks, hop_s = draw.choice([1, 2, 5, 9]), draw.uniform(0, 3)

    def cost(counts) -> float:
        stages = [n * each for n, each in zip(counts, layer_s, strict=True)]
        hops = sum(n > 0 for n in counts[1:])
        return sum(stages) + hops * hop_s + (chunks - 1) * max(stages)

    ways = [
        counts
        for counts in itertools.product(range(1, 8), *[range(8)] * (count - 1))
        if sum(counts) == num_layers
        and all(n <= room for n, room in zip(counts, rooms, strict=True))
    ]
    found = plan_layers(layer_s, rooms, num_layers, chunks, hop_s)
    if not ways:
        assert found is None
        return
    assert found is not None
    parts, seconds = found
    counts = [dict(parts).get(rank, 0) for rank in range(count)]
    assert counts in [list(way) for way in ways]
    assert seconds == pytest.approx(cost(counts))
    assert seconds == pytest.approx(min(map(cost, ways)))


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 4])
def test_no_lengths_have_a_shorter_longest(num_chunks: int) -> None:
    def chunk_s(length: int, past: int) -> float:
        return 3 + length + 0.4 * length * (past + length / 2)

    def longest(lengths) -> float:
        starts = [0, *itertools.accumulate(lengths)]
        return max(chunk_s(n, past) for n, past in zip(lengths, starts, strict=False))

    ways = [w for w in itertools.product(range(1, 21), repeat=num_chunks) if sum(w) == 20]
    found = PromptCuts(20, chunk_s).lengths(num_chunks)
    assert sum(found) == 20
    assert longest(found) == pytest.approx(min(map(longest, ways)))
    assert found == sorted(found, reverse=True)


def test_a_long_prompt_is_cut_in_coarser_places() -> None:
    found = PromptCuts(2048, lambda length, past: length * (1000 + past)).lengths(8)
    assert sum(found) == 2048
    assert all(length % 32 == 0 for length in found)
    assert found == sorted(found, reverse=True)
    assert PromptCuts(3, lambda length, past: length).lengths(8) == [1, 1, 1]


def test_equal_lengths() -> None:
    assert equal_lengths(10, 4) == [3, 3, 2, 2]
    assert equal_lengths(2, 5) == [1, 1]


def test_the_time_of_a_prompt() -> None:
    """Three alike stages of 2 s and hops of 1: four chunks take (4 + 3 - 1) stages and two hops;
    where the second is slower, it sets the pace.
    """
    stage = [lambda length, past: 2.0] * 3
    assert prompt_s(stage, [5] * 4, lambda length: 1.0) == pytest.approx(6 * 2 + 2)
    slower = [stage[0], lambda length, past: 5.0, stage[2]]
    assert prompt_s(slower, [5] * 4, lambda length: 1.0) == pytest.approx(2 + 1 + 4 * 5 + 1 + 2)


def test_what_a_chunk_costs_is_what_it_is_charged() -> None:
    """The planner's form beside the operators that virtual time counts: 128 positions of 70B."""
    cost = StageCost(config=LLAMA2_70B, weights="q4", profile=WORKER)
    flops = 2 * LLAMA2_70B.layer_parameters * 128
    nbytes = LLAMA2_70B.layer_parameters * 0.5625
    assert cost.layer_s(128, 0) == pytest.approx(flops / 100e9 + nbytes / 20e9, rel=0.02)
    assert cost.layer_s(128, 2048) > cost.layer_s(128, 0)


@pytest.mark.parametrize(
    ("devices", "chunks", "length"), [(1, 3, 20), (2, 3, 200), (3, 8, 200), (3, 4, 2), (2, 2, 1)]
)
def test_tokens_are_those_of_transformers(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    devices: int,
    chunks: int,
    length: int,
) -> None:
    system = even(chunks=chunks)
    check(system, checkpoints["gqa"], cache_dir, tmp_path, devices, length, here=True)


@pytest.mark.parametrize(
    ("weights", "dtype"), [("q8", "float32"), ("q4", "float32"), ("bfloat16", "bfloat16")]
)
def test_every_precision(
    wide: Path, cache_dir: Path, tmp_path: Path, weights: str, dtype: str
) -> None:
    check(
        even(chunks=3),
        wide,
        cache_dir,
        tmp_path,
        2,
        20,
        weights=weights,
        dtype=dtype,
        proportions=[1.0, 2.0],
        prefill_chunk=11,
        here=True,
    )


@pytest.mark.parametrize("chunks", [3, "auto"])
def test_planned_lengths_are_the_same_on_all_devices(
    checkpoints: dict[str, Path], cache_dir: Path, chunks: Any
) -> None:
    system = even(chunks=chunks, lengths="planned")
    request = Request(prompt_ids=prompt_of(100), num_new_tokens=8)
    job = make_job(
        system,
        checkpoints["gqa"],
        cache_dir,
        num_devices=3,
        request=request,
        profiles=(WORKER,) * 3,
    )
    lengths = system.cut(job, 100, 0)
    assert sum(lengths) == 100
    assert len(lengths) == 3 if chunks == 3 else len(lengths) >= 1
    assert answer_of(job).token_ids == oracle(checkpoints["gqa"], request.prompt_ids, 8)[0]


def test_in_processes(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """A prompt's states pass once, in as many bytes as in one piece."""
    request = Request(prompt_ids=prompt_of(50), num_new_tokens=8)
    found = [
        run_ok(
            make_job(
                even(chunks=chunks),
                checkpoints["gqa"],
                cache_dir,
                num_devices=3,
                request=request,
            )
        )
        for chunks in (1, 4)
    ]
    expected = oracle(checkpoints["gqa"], request.prompt_ids, 8)[0]
    assert [o.generation and o.generation.token_ids for o in found] == [expected] * 2
    sent = [sum(device.bytes_sent for device in outcome.devices) for outcome in found]
    assert sent[0] == sent[1]


@pytest.mark.parametrize(("chunks", "ttft_us"), [(1, 280), (4, 400)])
def test_devices_work_at_once(
    checkpoints: dict[str, Path], cache_dir: Path, chunks: int, ttft_us: int
) -> None:
    """A chunk takes 20 us a layer, however long it is: 5 layers on 3 devices are stages of 40, 40
    and 20. One passes in 100, four in 100 and three times the slowest more; with 2 hops of 60 us,
    and a third one back.
    """
    request = Request(prompt_ids=prompt_of(40), num_new_tokens=3)
    network = NetworkConfig(topology="switch", link_latency_ms=0.03)
    job = make_job(
        even(chunks=chunks),
        checkpoints["gqa"],
        cache_dir,
        num_devices=3,
        request=request,
        network=network,
        profiles=(IDEAL,) * 3,
    )
    world = world_of(IDEAL, IDEAL, IDEAL, network=network, costs=Scripted(attn=15_000, ffn=5_000))
    generation = world.run(lambda rt: run_rank(rt, job))[0].generation
    assert generation is not None
    assert generation.token_ns[0] - generation.request_ns == ttft_us * 1_000
    assert generation.token_ns[2] - generation.token_ns[1] == (100 + 180) * 1_000


def test_stages_for_prompts_are_more_even_than_for_tokens() -> None:
    """With one chunk all goes to the faster device; in many, both have their part: six and two
    layers take as long at the most as five and three, and less in sum."""
    fast = replace(device("fast", 20.0, 100), peak_gflops=200.0)
    slow = replace(device("slow", 10.0, 100), peak_gflops=100.0)
    site = replace(site_of([fast, slow]), num_positions=512)
    one = JupiterSystem(chunks=1).plan(SHAPE, site)
    many = JupiterSystem(chunks=16).plan(SHAPE, site)
    assert one.chain == (0,)
    assert many.chain == (0, 1)
    assert len(many.shards[1]) // 2 == 2


def test_more_than_memories_hold_does_not_fit() -> None:
    site = site_of([device("a", 1.0, 0.4), device("b", 1.0, 0.4)])
    with pytest.raises(DoesNotFit, match="of layers do not fit in the devices' memory"):
        JupiterSystem().plan(SHAPE, site)


def test_as_it_is_typed() -> None:
    typed = ("system=jupiter", "testbed.num_devices=2", *TYPED)
    result = run(*typed)
    assert (result.status, result.row.label, result.row.variant) == ("ok", "Jupiter", "")
    result = run(*typed, "system.chunks=4", "system.lengths=equal", "system.planner=waterfill")
    assert result.row.variant == "chunks 4 equal waterfill"
    for typo, words in (
        ("system.chunks=0", r"system.chunks=0 must be a whole number of at least 1, or auto"),
        ("system.lengths=odd", r"system.lengths=odd is unknown; choose one of equal, planned"),
        ("system.planner=best", r"system.planner=best is unknown; choose one of jupiter, propor"),
    ):
        with pytest.raises(ValueError, match=words):
            run(*typed, typo)
