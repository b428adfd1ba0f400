"""What share of a model each device of a team should have: as much as it can get through in time.

A device gets through what its memory holds at the rate of its memory, and through more only as fast
as its disk brings it. Of tensor parallelism all devices are to be ready together; in a pipeline,
where they work in turns, the fastest are to have as much as they can. Both are found by halving an
interval of token times (water-filling, as Parallax, arXiv 2509.26182, does by layers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_HALVINGS = 50
_LONGEST_S = 1e6  # of a token


@dataclass(frozen=True, kw_only=True)
class Hand:
    """A device as the planner sees it: bytes of weights that it holds, and bytes a second."""

    room: float
    memory_bps: float
    disk_bps: float


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """A share of the layers for each device, in percent, and what a token then takes at least."""

    shares: tuple[float, ...]
    token_s: float


def together(hands: Sequence[Hand], nbytes: float) -> Dealt:
    """`nbytes` divided so that all devices are ready at the same time."""

    def done(token_s: float) -> list[float]:
        return [
            min(token_s * hand.memory_bps, hand.room + token_s * hand.disk_bps) for hand in hands
        ]

    token_s = _least(lambda token_s: sum(done(token_s)) >= nbytes)
    return Dealt(shares=_percent(done(token_s)), token_s=token_s)


def in_turns(hands: Sequence[Hand], nbytes: float) -> Dealt:
    """`nbytes` divided so that they pass the devices one after another in the least time.

    What a device streams comes while the others work: all of a token's time.
    """

    def dealt(token_s: float) -> list[float]:
        left, parts = nbytes, [0.0] * len(hands)
        for i in sorted(range(len(hands)), key=lambda i: -hands[i].memory_bps):
            parts[i] = min(left, hands[i].room + token_s * hands[i].disk_bps)
            left -= parts[i]
        return parts

    def is_enough(token_s: float) -> bool:
        parts = dealt(token_s)
        taken_s = sum(part / hand.memory_bps for part, hand in zip(parts, hands, strict=True))
        return sum(parts) >= nbytes * (1 - 1e-9) and taken_s <= token_s

    token_s = _least(is_enough)
    return Dealt(shares=_percent(dealt(token_s)), token_s=token_s)


def _least(is_enough: Callable[[float], bool]) -> float:
    """The least token time that is enough; `_LONGEST_S` where none is."""
    too_little, enough = 0.0, _LONGEST_S
    for _ in range(_HALVINGS):
        middle = (too_little + enough) / 2
        if is_enough(middle):
            enough = middle
        else:
            too_little = middle
    return enough


def _percent(parts: Sequence[float]) -> tuple[float, ...]:
    """As one types them; nobody has nothing."""
    whole = sum(parts) or 1.0
    return tuple(max(0.1, round(100 * part / whole, 1)) for part in parts)
