"""How an answer is held against the oracle's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.settings import settings_of
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.request import Generation, Request
from tpi_bench.measure import oracle


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
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    found: list[int],
    max_decode_ns: int | None,
    is_equal: bool,
) -> None:
    """Unless the time for decoding was limited."""
    torch.save(torch.zeros(3, 4), tmp_path / "answer.pt")
    (tmp_path / "answer.json").write_text('{"token_ids": [5, 6, 7]}')
    monkeypatch.setattr(oracle, "_oracle_answer", lambda *_: tmp_path / "answer.pt")
    request = Request(prompt_ids=(1,), num_new_tokens=3, max_decode_ns=max_decode_ns)
    generation = Generation(token_ids=found, request_ns=0, token_ns=[], account=[])
    settings = settings_of("model=debug", "workload.prompt_ids=[1]", f"cache_dir={tmp_path}")
    job = _job(request)
    compared = oracle.compare_with_oracle(
        settings,
        None,  # type: ignore[arg-type]
        job,
        Outcome(status="ok", generation=generation),
    )
    assert compared.tokens_equal is is_equal


def _job(request: Request) -> Job:
    job = Job.__new__(Job)
    object.__setattr__(job, "request", request)
    object.__setattr__(job, "logits_path", None)
    return job
