"""Exact speculation on the master: what proposes tokens, and how much of it the model agrees with.

`generation.py` puts a draft behind the last token and asks for the logits of all of them in one
pass. What is not agreed with stays behind in the KV caches, and the next step, which begins at the
first position that does not hold, writes over it: its header tells every rank (`device_model.py`).
`drafters.py` has who proposes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from tpi_bench.contract.speculation import Speculation


class Drafter(Protocol):
    """What proposes tokens. Texts are all ids so far, of whatever turn; they may get shorter."""

    def read(self, text: Sequence[int]) -> None:
        """What is about to be answered: work that an answer's first token may wait for."""
        ...

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens (at least 1) that may follow."""
        ...


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
