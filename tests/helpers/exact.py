"""Whether a system's tokens and logits are those of Transformers, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.running import make_job, run_ok
from tpi_bench.contract.request import Request
from tpi_bench.contract.system import System

NUM_NEW = 64
MAX_LOGIT_DIFFERENCE = 1e-3


def check(
    system: System, folder: Path, cache_dir: Path, tmp_path: Path, num_devices: int, length: int
) -> None:
    """Run a prompt of `length` tokens on real devices and hold the answer against the oracle's."""
    prompt = prompt_of(length)
    expected_ids, expected_logits = oracle(folder, prompt, NUM_NEW)
    logits_path = tmp_path / "logits.pt"
    request = Request(prompt_ids=prompt, num_new_tokens=NUM_NEW, warmup_tokens=2, keep_logits=True)
    job = make_job(
        system,
        folder,
        cache_dir,
        num_devices=num_devices,
        request=request,
        logits_path=str(logits_path),
    )
    outcome = run_ok(job)
    assert outcome.generation is not None
    assert outcome.generation.token_ids == expected_ids
    difference = (torch.load(logits_path) - expected_logits).abs().max()
    assert difference < MAX_LOGIT_DIFFERENCE
