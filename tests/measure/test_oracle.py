"""How an answer is held against the oracle's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.running import make_job, model_of
from tests.helpers.settings import settings_of
from tpi_bench.contract.job import Job, Outcome, Output
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.system import System
from tpi_bench.measure import oracle
from tpi_bench.report.rows import Exactness


@pytest.mark.parametrize(
    ("found", "max_decode_ns", "is_equal"),
    [
        ([5, 6, 7], None, True),
        ([5, 6], None, False),
        ([5, 6], 10**9, True),
        ([5, 7], 10**9, False),
        ([5, 6, 8], None, False),
    ],
)
def test_an_answer_that_ends_early_is_another(
    tmp_path: Path,
    found: list[int],
    max_decode_ns: int | None,
    is_equal: bool,
) -> None:
    """Unless the time for decoding was limited."""
    path = tmp_path / "answer.pt"
    torch.save(torch.zeros(3, 4), path)
    request = Request(prompt_ids=(1,), num_new_tokens=3, max_decode_ns=max_decode_ns)
    generation = Generation(token_ids=found, request_ns=0, token_ns=[], account=[])
    outcome = Outcome(status="ok", generation=generation)
    compared = oracle._compared(_job(request), outcome, (path, [5, 6, 7]))
    assert compared.tokens_equal is is_equal


@dataclass(frozen=True, kw_only=True)
class Forgetful(System):
    """As an oracle: its n-th answer has logits that are all `logits[n]`, or the last of them."""

    folder: str
    logits: tuple[float, ...]
    name: str = "forgetful"

    def plan(self, config: Any, site: Any) -> None:
        return None

    def traffic(self, job: Job) -> Traffic:
        return Traffic()

    def run_device(self, rt: Any, job: Job, output: Output) -> Generation:
        counts = Path(self.folder) / "count"
        count = int(counts.read_text()) if counts.is_file() else 0
        counts.write_text(str(count + 1))
        value = self.logits[min(count, len(self.logits) - 1)]
        assert output.on_logits
        output.on_logits(torch.full((4,), value))
        return Generation(token_ids=[1], request_ns=0, token_ns=[1], account=[{}])


@pytest.mark.parametrize(
    ("logits", "found", "num_asked", "differs"),
    [
        ((1.0,), 1.0, 1, False),  # nobody doubts
        ((1.0,), 2.0, 2, True),  # it says the same again
        ((9.0, 1.0), 1.0, 3, False),  # its first answer was wrong
        ((1.0, 9.0, 1.0), 2.0, 3, True),  # its second was
    ],
)
def test_who_differs_makes_the_oracle_answer_again(
    logits: tuple[float, ...],
    found: float,
    num_asked: int,
    differs: bool,
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    ask = asking(logits, found, checkpoints["gqa"], tmp_path)
    for _ in range(2):  # the second time it is known
        compared = ask()
        assert (compared.max_logit_diff > compared.logit_bound) is differs
        assert (tmp_path / "count").read_text() == str(num_asked)
    assert len(list((tmp_path / "cache" / "oracle").glob("[!.]*"))) == 2
    assert not list((tmp_path / "cache" / "oracle").glob(".*.pt"))


def test_an_oracle_that_never_says_the_same(
    checkpoints: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The measurement stands; there is nothing to hold it against."""
    ask = asking((1.0, 2.0, 3.0), 9.0, checkpoints["gqa"], tmp_path)
    for _ in range(2):
        compared = ask()
        assert compared.tokens_equal is None
        assert math.isnan(compared.max_logit_diff)
        assert (tmp_path / "count").read_text() == "3"
    assert caplog.text.count("gave three answers to one request") == 1


def test_another_program_has_asked_again_meanwhile(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = asking((9.0, 1.0), 1.0, checkpoints["gqa"], tmp_path)
    own = oracle._Oracle.compared
    others = iter([ask, lambda: None, lambda: None])

    def compared(self: oracle._Oracle, outcome: Outcome) -> Exactness:
        found = own(self, outcome)
        monkeypatch.setattr(oracle._Oracle, "compared", own)
        next(others)()
        return found

    monkeypatch.setattr(oracle._Oracle, "compared", compared)
    assert ask().max_logit_diff == 0
    assert (tmp_path / "count").read_text() == "3"


def asking(
    logits: tuple[float, ...], found: float, folder: Path, tmp_path: Path
) -> Callable[[], Exactness]:
    """Hold an answer whose logits are all `found` against it."""
    cache_dir = tmp_path / "cache"
    program = Forgetful(folder=str(tmp_path), logits=logits)
    settings = settings_of("model=debug", "workload.prompt_ids=[1]", f"cache_dir={cache_dir}")
    request = Request(prompt_ids=[1], num_new_tokens=1)
    job = make_job(program, folder, cache_dir, num_devices=1, request=request)
    own = tmp_path / "own.pt"
    torch.save(torch.full((1, 4), found), own)
    generation = Generation(token_ids=[1], request_ns=0, token_ns=[1], account=[{}])
    outcome = Outcome(status="ok", generation=generation)
    return functools.partial(
        oracle.compare_with_oracle,
        replace(settings, oracle=program),
        model_of(folder),
        replace(job, logits_path=str(own)),
        outcome,
    )


def _job(request: Request) -> Job:
    job = Job.__new__(Job)
    object.__setattr__(job, "request", request)
    object.__setattr__(job, "logits_path", None)
    return job
