"""What share of a model each device of a team should have: as much as it can get through in time.

A device gets through what its memory holds at the rate of its memory, and through more only as fast
as its disk brings it. Of tensor parallelism all devices are to be ready together, which is found by
halving an interval of token times (water-filling, as Parallax, arXiv 2509.26182, does by layers);
in a pipeline, where they work in turns, the fastest are to have as much as they can.
"""

from __future__ import annotations

import math
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

    In its turn a device computes what it has and loads what it cannot hold, at once: up to a part
    of such a size that both take as long, a byte costs the time of its memory, and then that of its
    disk. The cheapest bytes are dealt first.
    """
    costs = []
    for rank, hand in enumerate(hands):
        is_faster = hand.disk_bps < hand.memory_bps
        both = hand.room / (1 - hand.disk_bps / hand.memory_bps) if is_faster else math.inf
        costs.append((1 / hand.memory_bps, rank, both))
        if hand.disk_bps and is_faster:
            costs.append((1 / hand.disk_bps, rank, math.inf))
    left, token_s, parts = nbytes, 0.0, [0.0] * len(hands)
    for cost, rank, most in sorted(costs):
        part = min(left, most)
        left, token_s = left - part, token_s + part * cost
        parts[rank] += part
    return Dealt(shares=_percent(parts), token_s=token_s if left <= 0 else math.inf)


def piped(hands: Sequence[Hand], nbytes: float) -> float:
    """Seconds that `nbytes` take at least, one device after another, with all disks at work
    meanwhile: a device gets through what it holds and what its disk has brought since its last
    turn. The fastest have as much as that is.
    """

    def is_enough(token_s: float) -> bool:
        left, spent_s = nbytes, 0.0
        for hand in sorted(hands, key=lambda each: -each.memory_bps):
            part = min(left, hand.room + token_s * hand.disk_bps)
            left, spent_s = left - part, spent_s + part / hand.memory_bps
        return left <= 0 and spent_s <= token_s

    return _least(is_enough)


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
