"""Speculation gives what greedy decoding gives, on every system, whatever is drafted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines.dllama import DllamaSystem
from baselines.galaxy import GalaxySystem
from baselines.pipeline import PipelineSystem
from baselines.prima import PrimaSystem
from tests.helpers.drafting import LOOKUP, drafted
from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.running import make_job
from tests.helpers.virtual import IDEAL, answer_of, run_here
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.request import Request
from tpi_bench.contract.speculation import Speculation
from tpi_bench.contract.system import System
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.generation import generate
from tpi_bench.engine.prompt_lookup import PromptLookup
from tpi_bench.engine.speculation import Agreement
from tpi_bench.engine.tpi import TpiSystem

NUM_NEW = 24
PROMPT = prompt_of(9)
SYSTEMS: list[tuple[int, System]] = [
    *((n, TpiSystem(collective=name)) for n in (2, 3) for name in COLLECTIVES),
    *((4, TpiSystem(collective=name, window=1, retain_every=2)) for name in COLLECTIVES),
    (1, TpiSystem(window=2)),
    *((n, TpiSystem(loading=how)) for n in (1, 2) for how in ("mmap", "faulted", "blocking")),
    (1, PipelineSystem()),
    (3, PipelineSystem(window=2)),
    (2, PipelineSystem(loading="mmap")),
    *((n, GalaxySystem()) for n in (1, 2, 3, 5)),
    (3, PrimaSystem(planner="proportional", rounds=1)),
    (3, DllamaSystem(wire="auto")),
]


def job_of(
    system: System, num_devices: int, source: Path, cache_dir: Path, tmp_path: Path, **extra: str
) -> Job:
    request = Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW, keep_logits=True)
    return make_job(
        system,
        source,
        cache_dir,
        num_devices=num_devices,
        request=request,
        logits_path=str(tmp_path / "logits.pt"),
        **extra,
    )


@pytest.mark.parametrize(
    ("num_devices", "system"), SYSTEMS, ids=[f"{n}-{s.label} {s.variant}" for n, s in SYSTEMS]
)
def test_the_tokens_are_those_of_plain_greedy(
    num_devices: int,
    system: System,
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of drafts of 1 to 4 tokens, of which each is right three times in four."""
    job = job_of(system, num_devices, checkpoints["gqa"], cache_dir, tmp_path)
    expected, logits = oracle(checkpoints["gqa"], PROMPT, NUM_NEW)
    found = drafted(job, expected, 0.75, monkeypatch)
    assert found.token_ids == expected
    assert len(torch.load(tmp_path / "logits.pt")) == NUM_NEW
    assert float((torch.load(tmp_path / "logits.pt") - logits).abs().max()) < 1e-3
    assert len(found.proposed) < NUM_NEW - 1
    assert len(found.accepted) + sum(found.accepted) == NUM_NEW - 1
    kinds = {(a == 0, a == p) for a, p in zip(found.accepted, found.proposed, strict=True)}
    assert {(True, False), (False, True), (False, False)} <= kinds


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("q8", "float32"),
        ("q4", "bfloat16"),
    ],
)
@pytest.mark.parametrize(
    ("num_devices", "system"),
    [
        (1, TpiSystem()),
        (2, TpiSystem(wire="q8")),
        (3, TpiSystem(collective="direct")),
        (2, PipelineSystem(wire="float16")),
    ],
    ids=["alone", "star", "direct", "pipeline"],
)
def test_each_logit_has_the_bits_of_plain_decoding(
    num_devices: int,
    system: System,
    weights: str,
    dtype: str,
    wide: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every precision: kernels compute a few positions as they do each alone."""
    job = job_of(system, num_devices, wide, cache_dir, tmp_path, weights=weights, dtype=dtype)
    plain = answer_of(job)
    logits = torch.load(tmp_path / "logits.pt")
    found = drafted(job, plain.token_ids, 0.75, monkeypatch)
    assert found.token_ids == plain.token_ids
    assert sum(found.accepted) > 0
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)


@pytest.mark.parametrize("draft_tokens", [1, 7, 12, 200])
def test_long_drafts_and_short(
    draft_tokens: int,
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of more than a kernel takes torch computes; the answer ends where it is asked to."""
    job = job_of(TpiSystem(), 2, checkpoints["gqa"], cache_dir, tmp_path)
    expected = oracle(checkpoints["gqa"], PROMPT, NUM_NEW)[0]
    asked = Speculation(kind="lookup", draft_tokens=draft_tokens)
    job = replace(job, request=replace(job.request, speculation=asked))
    found = drafted(job, expected, 0.95, monkeypatch)
    assert found.token_ids == expected
    assert max(found.proposed) <= min(draft_tokens, NUM_NEW - 2)
    assert max(found.accepted) == max(found.proposed) or draft_tokens > 1


def test_an_answer_ends_within_a_draft(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the first token that ends it, as without; what was right behind it does not count."""
    job = job_of(TpiSystem(), 1, checkpoints["gqa"], cache_dir, tmp_path)
    expected = oracle(checkpoints["gqa"], PROMPT, NUM_NEW)[0]
    for end in range(1, 12):
        request = replace(job.request, eos_ids=(expected[end],), speculation=LOOKUP)
        found = drafted(replace(job, request=request), expected, 1.0, monkeypatch)
        length = expected.index(expected[end]) + 1
        assert found.token_ids == expected[:length]
        assert len(found.token_ns) == len(found.account) == length
        assert sum(found.accepted) <= length - 1


def test_lookup_reads_the_prompt(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    """The answer itself stands in the prompt, so that nearly all of it is found there."""
    job = job_of(TpiSystem(), 2, checkpoints["tied"], cache_dir, tmp_path)
    first = answer_of(job).token_ids
    request = replace(job.request, prompt_ids=(*PROMPT, *first, *PROMPT))
    plain = answer_of(replace(job, request=request))
    found = answer_of(replace(job, request=replace(request, speculation=LOOKUP)))
    assert found.token_ids == plain.token_ids
    assert sum(found.proposed) > 0
    assert len(found.proposed) <= len(plain.token_ids) - 1


def test_a_pass_of_tokens_has_one_time_and_one_account(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(PipelineSystem(), 2, checkpoints["gqa"], cache_dir, tmp_path)
    expected = oracle(checkpoints["gqa"], PROMPT, NUM_NEW)[0]
    found = drafted(job, expected, 1.0, monkeypatch)
    begins = [0, 1]
    for accepted in found.accepted:
        begins.append(begins[-1] + accepted + 1)
    assert begins.pop() == NUM_NEW
    assert [i for i, account in enumerate(found.account) if account] == begins


def test_measured_virtual_time_has_real_tokens(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    """Those of a draft by the same model are all right, in each rehearsal."""
    source = checkpoints["tied"]
    job = replace(
        job_of(PipelineSystem(), 2, source, cache_dir, tmp_path),
        profiles=(IDEAL, IDEAL),
        logits_path=None,
    )
    plain = answer_of(job)
    asked = Speculation(kind="draft", draft_tokens=3)
    request = replace(job.request, speculation=asked)
    alone = make_job(TpiSystem(), source, cache_dir, num_devices=1, request=request)
    outcome = run_here(replace(job, request=request, draft=alone), tmp_path, cost="measured")
    assert outcome.generation is not None
    assert outcome.generation.token_ids == plain.token_ids
    assert outcome.generation.accepted == outcome.generation.proposed == [3] * 5 + [2]


def test_a_request_that_speculates_needs_a_drafter() -> None:
    request = Request(prompt_ids=(1,), num_new_tokens=4, speculation=LOOKUP)
    with pytest.raises(ValueError, match="drafter_of"):
        generate(None, lambda *_: torch.zeros(3), request, Output())  # type: ignore[arg-type]


def test_drawn_agreement_is_what_was_asked() -> None:
    """Of 4 tokens, each right with 0.7: 0.7 + 0.49 + ... = 1.7731 on average; always the same."""
    asked = Speculation(kind="lookup", draft_tokens=4, acceptance=0.7, seed=3)
    counts = [list(map(Agreement(asked).count, [[0] * 4] * 4000, [[0] * 5] * 4000)) for _ in "ab"]
    assert counts[0] == counts[1]
    assert sum(counts[0]) / 4000 == pytest.approx(1.7731, rel=0.03)
    counted = Agreement(replace(asked, acceptance=None))
    assert counted.count([5, 6, 7], [5, 6, 8, 9]) == 2
    assert counted.count([], [5]) == 0


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ([1, 2, 3], 4, []),  # the last token is new
        ([1, 2, 3, 9, 1, 2], 2, [3, 9]),
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # of two places the last
        ([5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2], 1, [3]),  # but the longer suffix first
        ([7, 8, 7, 8], 5, [7, 8, 7, 8, 7]),  # the copy goes on with itself
        ([4], 3, []),
    ],
)
def test_what_followed_the_same_words(text: list[int], most: int, expected: list[int]) -> None:
    assert PromptLookup().propose(text, most) == expected


def test_a_lookup_follows_a_text_that_grows_and_one_that_is_another() -> None:
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3], 2) == []
    assert lookup.propose([1, 2, 3, 1], 2) == [2, 3]
    assert lookup.propose([4, 5, 4], 1) == [5]
    assert lookup.propose([4, 5], 1) == []
