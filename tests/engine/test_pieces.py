"""A prompt in pieces: as many positions as one likes, behind what the KV caches hold already."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from baselines.galaxy import GalaxySystem
from baselines.hf_transformers import TransformersSystem
from baselines.pipeline import PipelineSystem
from tests.helpers.attention import DTYPES, HEADS, UNIT, expected, make, random
from tests.helpers.command_line import run, sweep
from tests.helpers.exact import check
from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.planned import planned_job
from tests.helpers.running import make_job
from tests.helpers.virtual import IDEAL, answer_of, run_here
from tpi_bench.contract.job import Job
from tpi_bench.contract.request import Request, Workload, make_request
from tpi_bench.contract.runtime import Span
from tpi_bench.contract.system import Streaming, System
from tpi_bench.engine import attention
from tpi_bench.engine.budget import other_bytes
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.device_model import DeviceModel
from tpi_bench.engine.generation import feed, generate
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.processes.runtime import as_bytes
from tpi_bench.virtual.operators import count_work

PROMPT = prompt_of(23)
NUM_NEW = 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("sizes", [(2, 3, 4), (1, 1, 7), (3, 1, 2, 3), (8, 1)])
def test_attention_sees_what_is_cached(heads: str, dtype: torch.dtype, sizes: Any) -> None:
    check_attention(heads, dtype, sizes)


def check_attention(heads: str, dtype: torch.dtype, sizes: Any) -> None:
    """Every position of every piece, against attention over all before it, in float64."""
    d = 16
    mix, rotary = make(heads, d, dtype)
    (first, last), (first_kv, last_kv), _ = HEADS[heads]
    qkv = random(sum(sizes), (last - first + 2 * (last_kv - first_kv)) * d).to(dtype)
    ends = list(itertools.accumulate(sizes))
    pieces = [mix(qkv[end - size : end], end - size) for end, size in zip(ends, sizes, strict=True)]
    bound = 8 * (UNIT[dtype] + d * UNIT[torch.float32]) * float(qkv.abs().max()) ** 2
    for position, mixed in enumerate(torch.cat(pieces)):
        exact = expected(qkv[: position + 1], heads, rotary, d)
        assert ((mixed.double() - exact).abs() <= bound).all(), position


@pytest.mark.parametrize("piece", [4, 5, 64])
@pytest.mark.parametrize("sizes", [(9,), (12, 12), (3, 13), (20, 1, 9)])
def test_later_keys_are_left_out_piece_by_piece(
    sizes: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of so many positions are computed at once, wherever a prompt is cut."""
    monkeypatch.setattr(attention, "_PIECE", piece)
    check_attention("even", torch.float32, sizes)


@pytest.mark.parametrize(
    ("num_new", "position", "num_seen"),
    [
        (4, 0, 2.5),
        (4, 5, 7.5),
        (8, 0, 4.5),
        (9, 0, (4 * 4 + 4 * 8 + 9) / 9),
        (12, 5, (4 * 9 + 4 * 13 + 4 * 17) / 12),
    ],
)
def test_what_attention_of_a_piece_is_charged(
    num_new: int, position: int, num_seen: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products of 6 heads of each position with what it sees, on average: a few see those up to
    themselves; of more, four at a time see all up to the last of them, as torch leaves none out.
    """
    monkeypatch.setattr(attention, "_PIECE", 4)
    with torch.device("meta"), torch.inference_mode():
        mix, _ = make("even", 64, torch.float32)
        _, work = count_work(lambda: mix(torch.empty(num_new, 10 * 64), position))
    assert sum(operator.flops for operator in work) == 2 * 2 * num_new * 6 * 64 * num_seen


SYSTEMS: list[tuple[int, System]] = [
    *((3, TpiSystem(collective=name)) for name in COLLECTIVES),
    *((2, TpiSystem(collective=name, window=2)) for name in COLLECTIVES),
    *((4, TpiSystem(collective=name, window=1, retain_every=2)) for name in COLLECTIVES),
    (2, TpiSystem(window=2, wire="auto", resident_io=True)),
    (1, TpiSystem(window=3)),
    (1, PipelineSystem()),
    (3, PipelineSystem(window=2)),
    (3, GalaxySystem()),
    (4, GalaxySystem()),
    *((n, TpiSystem(loading=how)) for n in (1, 2) for how in ("mmap", "faulted", "blocking")),
    (2, PipelineSystem(loading="mmap")),
]


@pytest.mark.parametrize(("num_devices", "system"), SYSTEMS, ids=str)
def test_every_system_gives_the_same_tokens(
    checkpoints: dict[str, Path], cache_dir: Path, num_devices: int, system: System
) -> None:
    """Every program really computes; pieces of one position, and of a number that leaves a rest."""
    whole, _ = oracle(checkpoints["gqa"], PROMPT, NUM_NEW)
    for chunk in (1, 9):
        request = Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW, prefill_chunk=chunk)
        job = make_job(
            system, checkpoints["gqa"], cache_dir, num_devices=num_devices, request=request
        )
        assert answer_of(job).token_ids == whole, chunk


@pytest.mark.parametrize(
    ("num_devices", "system", "chunk"),
    [
        (4, TpiSystem(collective="star", window=2), 64),
        (3, TpiSystem(collective="ring"), 7),
        (2, TpiSystem(collective="direct", window=1), 199),
        (3, PipelineSystem(window=2), 33),
        (3, GalaxySystem(), 64),
        (1, TransformersSystem(), 64),
    ],
    ids=str,
)
def test_pieces_on_real_devices(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    num_devices: int,
    system: System,
    chunk: int,
) -> None:
    """Tokens and logits of a prompt of 200 are those of Transformers, which gets it whole."""
    source = checkpoints["gqa"]
    check(system, source, cache_dir, tmp_path, num_devices, 200, prefill_chunk=chunk)


def test_a_packed_wire_has_room_for_a_piece(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """And the ledger says that it is less."""
    held = {}
    for chunk in (None, 5):
        request = Request(prompt_ids=PROMPT, num_new_tokens=2, prefill_chunk=chunk)
        system = TpiSystem(wire="q8", collective="direct")
        job = make_job(system, checkpoints["gqa"], cache_dir, num_devices=3, request=request)
        job = replace(job, profiles=(IDEAL,) * 3)
        outcome = run_here(job, cache_dir)
        assert outcome.status == "ok", outcome.error
        held[chunk] = outcome.devices[1].ledger_bytes
    hidden, groups = 72, -(-5 * 72 // 32)
    assert held[5]["buffers"] == 3 * -(-groups * 34 // 64) * 64
    assert held[5]["buffers"] <= held[None]["buffers"] / 4
    # Of one position less, with what it takes: the state, its norm and the partial sum, and the
    # largest inner result, 4 times a third of 100 columns.
    inner = 4 * 34
    assert held[None]["activations"] - held[5]["activations"] >= 18 * (3 * hidden + inner) * 4 * 0.9
    assert held[None]["earlier"] == 0
    assert held[5]["earlier"] == (23 + 2) * (5 + 2 * 3 * 8) * 4


def test_with_a_window_all_blocks_come_once_a_piece(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """In their order; bytes of 4 more steps are read for a prompt and its warm-up in 3 pieces."""
    read, orders = {}, {}
    for chunk in (None, 8):
        request = Request(prompt_ids=PROMPT, num_new_tokens=2, prefill_chunk=chunk)
        job = make_job(
            TpiSystem(window=2), checkpoints["gqa"], cache_dir, num_devices=2, request=request
        )
        job = replace(job, profiles=(IDEAL,) * 2)
        outcome = run_here(job, cache_dir, trace=True)
        read[chunk] = outcome.devices[1].weight_bytes_read
        orders[chunk] = _loads(outcome.devices[1].spans)
    streamed = sum(block.nbytes for block in job.blocks[1])
    assert read[8] - read[None] == 2 * 2 * streamed
    once = [f"{kind}_{layer}" for layer in range(5) for kind in ("attn", "ffn")]
    assert orders[8][: 7 * len(once)] == once * 7
    assert len(orders[8]) - len(orders[None]) == 4 * len(once)


def _loads(spans: list[Span]) -> list[str]:
    """What was read, in order."""
    return [s.key for s in sorted(spans, key=lambda s: s.start_ns) if s.kind == "read"]


def test_later_pieces_take_longer_as_they_see_more(cache_dir: Path) -> None:
    """Modelled: four pieces of as many positions; the answer's positions follow."""
    request = Request(prompt_ids=prompt_of(64), num_new_tokens=1, warmup_tokens=0, prefill_chunk=16)
    slow = replace(IDEAL, peak_gflops=1.0)
    job = replace(planned_job(system=TpiSystem()), request=request, profiles=(slow,))
    outcome = run_here(job, cache_dir, trace=True)
    spans = [s for s in outcome.devices[0].spans if s.key == "attn"]
    num_layers = job.config.num_layers
    took = [s.end_ns - s.start_ns for s in spans[::num_layers]]
    assert len(spans) == 4 * num_layers
    # Of 16 positions with 16 more, at 1 GFLOPS: two products of 4 heads of 32.
    each = 2 * 2 * 16 * 16 * 4 * 32
    for earlier, later in itertools.pairwise(took):
        assert later - earlier == pytest.approx(each, abs=2)


def test_feed_gives_the_last_logits() -> None:
    fed: list[tuple[list[int], int]] = []

    def forward(ids: list[int], position: int) -> torch.Tensor:
        fed.append((ids, position))
        return torch.tensor(ids[-1:])

    assert feed(forward, [4, 5, 6, 7, 8], 10, 2).tolist() == [8]
    assert fed == [([4, 5], 10), ([6, 7], 12), ([8], 14)]


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_piece_has_a_position(chunk: int) -> None:
    with pytest.raises(ValueError, match=rf"workload.prefill_chunk={chunk} must be at least 1"):
        Workload(prompt="x", prefill_chunk=chunk)


def test_the_request_says_how_many_come_at_once() -> None:
    for chunk, most in ((None, 5), (3, 3), (9, 5)):
        workload = Workload(prompt_ids=[1, 2, 3, 4, 5], prefill_chunk=chunk)
        request = make_request(workload, [1, 2, 3, 4, 5], vocab=9, context_length=100, eos_ids=())
        assert request.most_new == most


def test_less_memory_is_planned_for() -> None:
    whole = planned_job(num_prompt=400)
    pieces = replace(whole, request=replace(whole.request, prefill_chunk=16))
    assert other_bytes(pieces, 0) < other_bytes(whole, 0) / 2


def test_as_it_is_typed(cache_dir: Path, tmp_path: Path) -> None:
    """In a sweep, on four devices with a window; the rows say what was asked."""
    folder = sweep(
        *("testbed=virtual", "testbed.num_devices=4", "model=debug", "system=tpi,pipeline,galaxy"),
        *("workload.prompt_tokens=48", "workload.prefill_chunk=16,null"),
        *("workload.num_new_tokens=3", "network=paper"),
        cache_dir=cache_dir,
        tmp_path=tmp_path,
    )
    runs = pd.read_parquet(folder / "runs.parquet")
    assert runs.prefill_chunk.fillna(0).tolist() == [16, 0] * 3
    pieces, whole = runs[runs.prefill_chunk == 16], runs[runs.prefill_chunk.isna()]
    assert list(pieces.token_latency_s) == pytest.approx(list(whole.token_latency_s))
    # Links are waited for once a piece, of which there are three.
    assert all(pieces.ttft_s.array > 2.4 * whole.ttft_s.array)
    assert all(pieces.ttft_s.array < 3.5 * whole.ttft_s.array)


def test_a_bad_piece_is_one_line(cache_dir: Path) -> None:
    done = run(
        "model=debug", "workload.prompt_ids=[1]", "workload.prefill_chunk=0", cache_dir=cache_dir
    )
    assert done.returncode != 0
    assert done.stderr == (
        "error: workload.prefill_chunk=0 must be at least 1 position, or null for the whole prompt "
        "at once\n"
    )


# What an author of a system is told.


def device_model(checkpoints: dict[str, Path], cache_dir: Path, **settings: Any) -> DeviceModel:
    request = Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW, prefill_chunk=4)
    system = TpiSystem(**settings)
    job = make_job(system, checkpoints["gqa"], cache_dir, num_devices=1, request=request)
    found: list[DeviceModel] = []

    class Keep(TpiSystem):
        def run_device(self, rt: Any, job: Job, output: Any) -> None:
            found.append(DeviceModel(rt, job, system.streaming(job, 0)))

    answer_of(replace(job, program=Keep()))
    return found[0]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([(4, 0), (1, 5)], "a step of 1 positions from position 5 on: .* begin at 0 to 4"),
        ([(3, 1)], "from position 1 on: .* begin at 0 to 0"),
        ([(20, 0), (12, 20)], r"end within 31 \(prompt and answer\)"),
        ([(0, 0)], "at least 1"),
    ],
)
def test_steps_that_cannot_be(
    checkpoints: dict[str, Path], cache_dir: Path, steps: Any, words: str
) -> None:
    model = device_model(checkpoints, cache_dir)
    *before, last = steps
    for num_new, position in before:
        model.begin(num_new, position)
    with pytest.raises(ValueError, match=words):
        model.begin(*last)


def test_a_step_may_go_back(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """As the next request does, or an answer that is thought over."""
    model = device_model(checkpoints, cache_dir)
    for num_new, position in ((4, 0), (4, 4), (2, 3), (3, 0)):
        model.begin(num_new, position)
    with pytest.raises(ValueError, match=r"begin at 0 to 3 \(what the KV cache holds\)"):
        model.begin(1, 4)  # what was behind it is forgotten


def test_blocks_out_of_order(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    model = device_model(checkpoints, cache_dir, window=2)
    with pytest.raises(ValueError, match=r"block 3 \(.*\) was asked for, but block 0 .* is next"):
        model.window.acquire(3)


def test_attention_has_no_room_left() -> None:
    mix, _ = make("even", 16, torch.float32)
    rows = random(2, 10 * 16)
    with pytest.raises(ValueError, match=r"2 new positions from position .* has room for"):
        mix(rows, mix.cache.keys.shape[1] - 1)


def test_a_system_without_a_plan_has_no_blocks(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    request = Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW)
    job = make_job(TpiSystem(), checkpoints["gqa"], cache_dir, num_devices=1, request=request)
    with pytest.raises(ValueError, match="system=tpi has no plan"):
        DeviceModel(None, replace(job, plan=None), Streaming(kept=(), streamed=()))  # type: ignore[arg-type]


def test_a_forward_pass_gives_logits(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """Hidden states would be sampled from, too, and the tokens be nonsense."""

    class Unfinished(TpiSystem):
        def run_device(self, rt: Any, job: Job, output: Any) -> None:
            model = DeviceModel(rt, job)
            generate(rt, lambda ids, position: model.embed(ids), job.request, output)

    request = Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW)
    job = make_job(Unfinished(), checkpoints["gqa"], cache_dir, num_devices=1, request=request)
    with pytest.raises(ValueError, match=r"of shape \(23, \d+\); it must give the logits"):
        answer_of(job)


def test_a_message_is_contiguous(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """On either testbed; a virtual one could copy it, and processes could not."""

    class Turned(TpiSystem):
        def run_device(self, rt: Any, job: Job, output: Any) -> None:
            turned = torch.zeros(3, 2).T
            if rt.rank:
                rt.send(0, turned)
            else:
                rt.recv(1, turned)

    request = Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW)
    job = make_job(Turned(), checkpoints["gqa"], cache_dir, num_devices=2, request=request)
    words = r"contiguous tensor, but one of shape \(2, 3\) has strides \(1, 2\)"
    with pytest.raises(ValueError, match=words):
        answer_of(job)
    with pytest.raises(ValueError, match=words):
        as_bytes(torch.zeros(3, 2).T)


@pytest.mark.parametrize(
    ("given", "said"), [(None, "NoneType"), (torch.zeros(2, 3), r"\(2, 3\)"), (1.5, "float")]
)
def test_what_adds_up_gives_what_is_due(
    given: Any, said: str, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """A forgotten `return` is one line that names the rank."""

    class Forgetful(TpiSystem):
        def run_device(self, rt: Any, job: Job, output: Any) -> None:
            model = DeviceModel(rt, job)
            model.layers(torch.zeros(1, job.config.hidden), 0, lambda partial: given)

    request = Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW)
    job = make_job(Forgetful(), checkpoints["gqa"], cache_dir, num_devices=1, request=request)
    words = rf"rank 0: what adds up partial sums gave {said} where a tensor of shape \(1, "
    with pytest.raises(ValueError, match=words):
        answer_of(job)
