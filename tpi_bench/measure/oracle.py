"""Are the outputs unchanged? Tokens and logits of a run against plain Transformers, the oracle.

The oracle computes in `model.dtype` with the values that weights have in `model.weights`. Its
answer to a request is computed once, by the `oracle` system of the config in a process of its own,
and kept in the cache; again, where an answer that is held against it differs.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
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

_Answer = tuple[Path, list[int]]  # a file of logits, and tokens
_log = logging.getLogger(__name__)


def compare_with_oracle(settings: Settings, model: Model, job: Job, outcome: Outcome) -> Exactness:
    """The exactness columns; those of logits are NaN for a system that gave none.

    Where logits differ by more than rounding can make, the oracle is doubted too, once: it answers
    again, and what two of its answers agree on is kept. Where no two do there is nothing to compare
    with, and the columns are empty.
    """
    oracle = _Oracle(settings, model, job, cache.cache_folder(settings.cache_dir))
    found = oracle.compared(outcome)
    while found.max_logit_diff > found.logit_bound and oracle.has_more_to_say():
        found = oracle.compared(outcome)
    return found


class _Oracle:
    """Its answer to a job's request: a file of logits, and one of its tokens beside it.

    That one has how often it was asked as well (`num_times`), and `is_sure` once that may be the
    last time: false where it never said the same.
    """

    def __init__(self, settings: Settings, model: Model, job: Job, cache_dir: Path) -> None:
        self._program, self._model = settings.oracle, model
        self._job, self._cache_dir = job, cache_dir
        self._request = replace(
            job.request,
            max_decode_ns=None,
            warmup_tokens=0,
            prefill_chunk=None,
            speculation=None,
            prompt_text=None,
        )
        types = [model.dtype, model.weights]
        what = [model.checkpoint.identity, types, asdict(self._request), vars(self._program)]
        self._path = cache_dir / "oracle" / f"{cache.digest(what)}.pt"
        self._told = self._path.with_suffix(".json")
        self._num_times = 0  # of the answer that was compared last

    def compared(self, outcome: Outcome) -> Exactness:
        """With what is kept, or computed now."""
        with cache.locked(self._path):
            if not self._path.is_file() or not self._told.is_file():
                self._keep(self._asked("first"), num_times=1)
            told = json.loads(self._told.read_text())
            self._num_times = told.get("num_times", 1)
            if not told.get("is_sure", True):
                return Exactness.unmeasured()
            return _compared(self._job, outcome, (self._path, told["token_ids"]))

    def has_more_to_say(self) -> bool:
        """Than what was compared: asked again now, or by another program meanwhile."""
        with cache.locked(self._path):
            told = json.loads(self._told.read_text())
            if told.get("num_times", 1) != self._num_times:
                return True
            if self._num_times > 1:
                return False
            first = (self._path, told["token_ids"])
            try:
                return self._asked_again(first)
            finally:
                for name in ("second", "third"):
                    self._temporary(name).unlink(missing_ok=True)

    def _asked_again(self, first: _Answer) -> bool:
        second = self._asked("second")
        if self._agree(first, second):
            self._write(first[1], num_times=2)
            return False
        third = self._asked("third")
        is_first, is_second = self._agree(first, third), self._agree(second, third)
        if not is_first and not is_second:
            _log.warning(
                "the oracle (%s) gave three answers to one request that differ by more than "
                "rounding can make: nothing is held against it",
                self._program.name,
            )
            self._write(first[1], num_times=3, is_sure=False)
            return True
        _log.warning(
            "the oracle (%s) gave two answers to one request; kept is what it said twice, not the "
            "%s",
            self._program.name,
            "second" if is_first else "first",
        )
        self._keep(third, num_times=3)
        return not is_first

    def _agree(self, one: _Answer, other: _Answer) -> bool:
        """Whether rounding could have parted their logits, up to the first other token."""
        same = _num_leading(one[1], other[1])
        difference, largest = in_helper(compare_logits, one[0], other[0], same + 1)
        job = self._job
        return difference <= logit_bound(job.config, job.dtype, job.request.length, largest)

    def _keep(self, answer: _Answer, num_times: int) -> None:
        path, tokens = answer
        self._told.unlink(missing_ok=True)  # logits without tokens are computed anew
        path.replace(self._path)
        self._write(tokens, num_times)

    def _write(self, tokens: list[int], num_times: int, is_sure: bool = True) -> None:
        told = {"token_ids": tokens, "num_times": num_times, "is_sure": is_sure}
        cache.write_json(self._told, told)

    def _temporary(self, name: str) -> Path:
        return self._path.with_name(f".{self._path.stem}.{name}.pt")

    def _asked(self, name: str) -> _Answer:
        oracle = self._program
        outcome = run_job(
            replace(
                self._job,
                program=oracle,
                num_devices=1,
                plan=None,
                blocks=[],
                draft=None,
                request=self._request,
                threads_per_device=oracle.num_threads(len(available_cpus())),
                cpus=None,
                memory_bytes=None,
                timeout_s=None,
                checkpoint_path=str(held_folder(self._model, self._cache_dir)),
                logits_path=str(self._temporary(name)),
            )
        )
        if outcome.status != "ok" or outcome.generation is None:
            self._temporary(name).unlink(missing_ok=True)
            raise ValueError(f"the oracle ({oracle.name}) failed: {outcome.error}")
        return self._temporary(name), outcome.generation.token_ids


def _compared(job: Job, outcome: Outcome, answer: _Answer) -> Exactness:
    assert outcome.generation is not None
    path, expected = answer
    found = outcome.generation.token_ids
    same = _num_leading(found, expected)
    begun = expected[: len(found)]  # all that the time for decoding allowed
    logits = Path(job.logits_path or "")
    difference = bound = math.nan
    if logits.is_file():
        difference, largest = in_helper(compare_logits, logits, path, same + 1)
        bound = logit_bound(job.config, job.dtype, job.request.length, largest)
    return Exactness(
        tokens_equal=found == (expected if job.request.max_decode_ns is None else begun),
        num_same_tokens=sum(a == b for a, b in zip(found, expected, strict=False)),
        num_leading_tokens=same,
        max_logit_diff=difference,
        logit_bound=bound,
    )


def _num_leading(found: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(found, expected, strict=False))
    return next((number for number, (a, b) in pairs if a != b), len(found))


def compare_logits(found: Path, expected: Path, num_steps: int) -> tuple[float, float]:
    """Of two files of logits (n, v), in their first steps: the largest absolute difference, and
    the largest absolute value that was expected.
    """
    import torch

    a, b = torch.load(found, weights_only=True), torch.load(expected, weights_only=True)
    count = min(num_steps, len(a), len(b))
    return float((a[:count] - b[:count]).abs().max()), float(b[:count].abs().max())
