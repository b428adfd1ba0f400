"""What followed the same words earlier in a text: drafts without a model, by looking them up.

Pure Python on token ids. `speculation.py` asks it before each pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

_LONGEST = 32  # tokens of a suffix that are compared: more say no more


class PromptLookup:
    """Finds the longest suffix of a text that stands earlier in it, the last such place."""

    def __init__(self) -> None:
        self._text: list[int] = []
        self._places: dict[int, list[int]] = defaultdict(list)  # of each token, in order

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that followed; none where the last token is new.

        What is copied may be a part of the copy itself, as where a text repeats itself.
        """
        self._follow(text)
        place = self._best_place()
        if place is None:
            return []
        copied = list(self._text[place + 1 : place + 1 + most])
        period = len(self._text) - 1 - place
        while len(copied) < most:
            copied.append(copied[-period])
        return copied

    def _follow(self, text: Sequence[int]) -> None:
        """Take in what is new; of another text all that is."""
        known = len(self._text)
        if list(text[:known]) != self._text:
            self._text, known = [], 0
            self._places.clear()
        for place in range(known, len(text)):
            self._places[text[place]].append(place)
        self._text.extend(text[known:])

    def _best_place(self) -> int | None:
        """Where the longest equal suffix ends, before the end of the text."""
        end = len(self._text) - 1
        best, longest = None, 0
        for place in reversed(self._places[self._text[end]][:-1]):
            same = self._num_same(place, end)
            if same > longest:
                best, longest = place, same
            if longest == _LONGEST:
                break
        return best

    def _num_same(self, place: int, end: int) -> int:
        """Tokens that are the same up to both places, as many as are compared."""
        text = self._text
        count = 0
        while count < min(_LONGEST, place + 1) and text[place - count] == text[end - count]:
            count += 1
        return count
