"""Drafts of a smaller model, which the master holds beside its part of the large one.

Its weights are all in memory, and its KV cache follows the text: what both have in common stays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpi_bench.contract.system import Streaming
from tpi_bench.engine.device_model import DeviceModel
from tpi_bench.engine.generation import feed
from tpi_bench.engine.sampling import greedy

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.job import Job
    from tpi_bench.contract.runtime import Runtime


class ModelDrafter:
    """Greedy decoding by `job.draft`, one device's job."""

    def __init__(self, rt: Runtime, job: Job) -> None:
        assert job.draft is not None
        self._rt = rt
        self._most_new = job.draft.request.most_new
        self._model = DeviceModel(rt, job.draft, Streaming.of_all(job.draft.blocks[0]))
        self._cached: list[int] = []

    def read(self, text: Sequence[int]) -> None:
        self._logits_after(text)

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        draft: list[int] = []
        for _ in range(most):
            logits = self._logits_after([*text, *draft])
            choose = functools.partial(greedy, logits)
            draft.append(self._rt.compute(("sample", logits.shape[0]), choose))
        return draft

    def _logits_after(self, text: Sequence[int]) -> torch.Tensor:
        """(v,) of the token behind `text`, of which what is cached is not fed again."""
        known = min(_num_same(text, self._cached), len(text) - 1)
        logits = feed(self._forward, list(text[known:]), known, self._most_new)
        self._cached = list(text)
        return logits

    def _forward(self, token_ids: list[int], position: int) -> torch.Tensor:
        x = self._model.layers(self._model.embed(token_ids), position, lambda partial: partial)
        return self._model.logits(x)


def _num_same(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
