"""Exact speculation on the master: what a pass proposes, and how much of it the model agrees with.

`generation.py` puts a draft behind the last token and asks for the logits of all of them in one
pass. What is not agreed with stays behind in the KV caches, and the next step, which begins at the
first position that does not hold, writes over it: its header tells every rank (`device_model.py`).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tpi_bench.contract.speculation import Speculation
from tpi_bench.engine.prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from tpi_bench.contract.job import Job
    from tpi_bench.contract.runtime import Runtime


class Drafter(Protocol):
    """What proposes tokens. Texts are all ids so far, of whatever turn; they may get shorter."""

    def read(self, text: Sequence[int]) -> None:
        """What is about to be answered: work that an answer's first token may wait for."""
        ...

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens (at least 1) that may follow."""
        ...


class LookupDrafter:
    """Copies from the text itself; a little Python on the master, charged as sampling is."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        self._lookup = PromptLookup()

    def read(self, text: Sequence[int]) -> None:
        self.propose(text, 1)

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        find = functools.partial(self._lookup.propose, text, most)
        return self._rt.compute(("lookup", most), find)


class UnrealDrafter:
    """Where nothing real is computed: always as many as are allowed, of no meaning."""

    def read(self, text: Sequence[int]) -> None:
        """There is nothing to look at."""

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        return [0] * most


def drafter_of(rt: Runtime, job: Job) -> Drafter | None:
    """What proposes tokens in a job's answers; None where each pass gives one."""
    speculation = job.request.speculation
    if speculation is None:
        return None
    if speculation.kind == "draft":
        from tpi_bench.engine.draft_model import ModelDrafter

        return ModelDrafter(rt, job)
    return LookupDrafter(rt) if speculation.acceptance is None else UnrealDrafter()


class Agreement:
    """How much of a draft is kept: what greedy decoding gives too, or what is drawn for it."""

    def __init__(self, speculation: Speculation | None) -> None:
        self._share = None if speculation is None else speculation.acceptance
        self._random = random.Random(0 if speculation is None else speculation.seed)

    def count(self, draft: Sequence[int], chosen: Sequence[int]) -> int:
        """Of `draft`, for each of which the model has `chosen` a token, and one more behind."""
        for number, (drafted, token) in enumerate(zip(draft, chosen, strict=False)):
            is_right = drafted == token if self._share is None else self._is_drawn(self._share)
            if not is_right:
                return number
        return len(draft)

    def _is_drawn(self, share: float) -> bool:
        return self._random.random() < share
