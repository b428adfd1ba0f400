"""Are the outputs unchanged? Tokens and logits of a run against plain Transformers, the oracle.

The oracle computes in `model.dtype` with the values that weights have in `model.weights`. Its
answer to a request is computed once, by the `oracle` system of the config in a process of its own,
and kept in the cache.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.model import Model
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure.rounding import logit_bound
from tpi_bench.measure.settings import Settings
from tpi_bench.models.hf_folder import held_folder
from tpi_bench.processes.launcher import run_job
from tpi_bench.report.rows import Exactness


def compare_with_oracle(settings: Settings, model: Model, job: Job, outcome: Outcome) -> Exactness:
    """The exactness columns; those of logits are NaN for a system that gave none."""
    assert outcome.generation is not None
    cache_dir = cache.cache_folder(settings.cache_dir)
    answer = _oracle_answer(settings, model, job, cache_dir)
    expected = json.loads(answer.with_suffix(".json").read_text())["token_ids"]
    found = outcome.generation.token_ids
    same = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found)
    )
    begun = expected[: len(found)]  # all that the time for decoding allowed
    logits = Path(job.logits_path or "")
    difference = bound = math.nan
    if logits.is_file():
        difference, largest = in_helper(compare_logits, logits, answer, same + 1)
        bound = logit_bound(job.config, job.dtype, job.request.length, largest)
    return Exactness(
        tokens_equal=found == (expected if job.request.max_decode_ns is None else begun),
        num_same_tokens=sum(a == b for a, b in zip(found, expected, strict=False)),
        num_leading_tokens=same,
        max_logit_diff=difference,
        logit_bound=bound,
    )


def _oracle_answer(settings: Settings, model: Model, job: Job, cache_dir: Path) -> Path:
    """The file of the oracle's logits; its tokens lie beside it as JSON."""
    request = replace(
        job.request,
        max_decode_ns=None,
        warmup_tokens=0,
        prefill_chunk=None,
        speculation=None,
        prompt_text=None,
    )
    oracle = settings.oracle
    types = [model.dtype, model.weights]
    key = cache.digest([model.checkpoint.identity, types, asdict(request), vars(oracle)])
    path = cache_dir / "oracle" / f"{key}.pt"
    with cache.locked(path):
        if path.is_file() and path.with_suffix(".json").is_file():
            return path
        temporary = path.with_name(f".{key}.tmp.pt")
        outcome = run_job(
            replace(
                job,
                program=oracle,
                num_devices=1,
                plan=None,
                blocks=[],
                draft=None,
                request=request,
                threads_per_device=oracle.num_threads(len(available_cpus())),
                cpus=None,
                memory_bytes=None,
                timeout_s=None,
                checkpoint_path=str(held_folder(model, cache_dir)),
                logits_path=str(temporary),
            )
        )
        if outcome.status != "ok" or outcome.generation is None:
            temporary.unlink(missing_ok=True)
            raise ValueError(f"the oracle ({oracle.name}) failed: {outcome.error}")
        temporary.replace(path)
        cache.write_json(path.with_suffix(".json"), {"token_ids": outcome.generation.token_ids})
    return path


def compare_logits(found: Path, expected: Path, num_steps: int) -> tuple[float, float]:
    """Of two files of logits (n, v), in their first steps: the largest absolute difference, and
    the largest absolute value that was expected.
    """
    import torch

    a, b = torch.load(found, weights_only=True), torch.load(expected, weights_only=True)
    count = min(num_steps, len(a), len(b))
    return float((a[:count] - b[:count]).abs().max()), float(b[:count].abs().max())
