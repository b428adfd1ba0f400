"""Drafters that are right as often as a test says, for speculation on every system."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.helpers.virtual import answer_of
from tpi_bench.contract.job import Job
from tpi_bench.contract.request import Generation
from tpi_bench.contract.speculation import Speculation
from tpi_bench.engine import drafters

LOOKUP = Speculation(kind="lookup", draft_tokens=4)


class KnowsTheAnswer:
    """Proposes what is known to follow, but each token is wrong with some chance."""

    def __init__(self, text: Sequence[int], share: float, seed: int = 0) -> None:
        self._text, self._share = list(text), share
        self._random = random.Random(seed)

    def read(self, text: Sequence[int]) -> None:
        """It has read everything."""

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        right = self._text[len(text) : len(text) + self._random.randint(1, most)]
        return [t if self._random.random() < self._share else (t + 1) % 300 for t in right]


def drafted(
    job: Job, answer: Sequence[int], share: float, monkeypatch: pytest.MonkeyPatch
) -> Generation:
    """The job's answer, drafted by one who knows it, in this process."""
    text = [*job.request.prompt_ids, *answer]
    monkeypatch.setattr(drafters, "drafter_of", lambda _rt, _job: KnowsTheAnswer(text, share))
    request = job.request
    if request.speculation is None:
        request = replace(request, speculation=LOOKUP)
    return answer_of(replace(job, request=request))
