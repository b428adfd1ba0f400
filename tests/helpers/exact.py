"""Whether a system's tokens and logits are those of Transformers, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.running import make_job, model_of, run_ok
from tests.helpers.virtual import answer_of
from tpi_bench.contract.model import Checkpoint
from tpi_bench.contract.request import Request
from tpi_bench.contract.system import System
from tpi_bench.measure.rounding import logit_bound
from tpi_bench.models.hf_folder import held_folder

NUM_NEW = 32
MAX_LOGIT_DIFFERENCE = 1e-3


def check(
    system: System,
    source: Path | Checkpoint,
    cache_dir: Path,
    tmp_path: Path,
    num_devices: int,
    length: int,
    *,
    weights: str = "float32",
    dtype: str = "float32",
    proportions: list[float] | None = None,
    prefill_chunk: int | None = None,
    here: bool = False,
) -> float:
    """Run a prompt of `length` tokens on real devices and hold the answer against the oracle's.

    With `here` in this process, which is quicker: all of a device but its process, its sockets and
    its direct reads.

    In fp32 every token is the same; else logits up to the first other one are within their bound,
    of which the largest difference takes the share that is returned.
    """
    prompt = prompt_of(length)
    model = model_of(source, weights, dtype)
    expected_ids, expected_logits = oracle(held_folder(model, cache_dir), prompt, NUM_NEW, dtype)
    logits_path = tmp_path / "logits.pt"
    request = Request(
        prompt_ids=prompt,
        num_new_tokens=NUM_NEW,
        warmup_tokens=2,
        keep_logits=True,
        prefill_chunk=prefill_chunk,
    )
    job = make_job(
        system,
        source,
        cache_dir,
        num_devices=num_devices,
        request=request,
        proportions=proportions,
        weights=weights,
        dtype=dtype,
        logits_path=str(logits_path),
    )
    generation = answer_of(job) if here else run_ok(job).generation
    assert generation is not None
    ids = generation.token_ids
    same = next((i for i in range(NUM_NEW) if ids[i] != expected_ids[i]), NUM_NEW)
    begun = slice(0, same + 1)
    difference = float((torch.load(logits_path) - expected_logits)[begun].abs().max())
    bound = logit_bound(model.config, dtype, request.length, float(expected_logits.abs().max()))
    if dtype == "float32":
        assert ids == expected_ids
        assert difference < MAX_LOGIT_DIFFERENCE
    else:
        assert difference < bound
    return difference / bound
