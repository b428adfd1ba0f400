"""Where streamed blocks lie in memory: fixed addresses in one area that they pass through.

Blocks are visited in a fixed cyclic order, once a token. Each keeps one address for the whole run,
so nothing is allocated or re-viewed for a load. `streaming.py` places the blocks of a window,
`budget.py` those of a memory budget; `window.py` asks when a block may be read to its place.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tpi_bench.contract.blocks import PAGE

Range = tuple[int, int]
_WIDER_WINDOWS = 8  # whose placements are tried for a narrower one


def place_blocks(sizes: Sequence[int], window: int, alignment: int = PAGE) -> tuple[list[int], int]:
    """Addresses for blocks of which `window` are held at once, and the area's size.

    Two blocks may share addresses only when they are at least `window` steps apart in both
    directions. No area is smaller than the blocks of the fullest moment (Proposition 5 of TPI-LLM);
    an area of fixed addresses is often larger, as a cycle seldom is a whole number of windows: of
    each kind of block at most one more, where there are enough of them. The smallest of some ways
    is taken, those of some wider windows too, so that a wider one does not need less (tested to 16
    blocks).
    """
    rounded = tuple(-(-size // alignment) * alignment for size in sizes)
    places, area = _best_places(rounded, max(1, min(window, len(rounded))))
    return list(places), area


@functools.lru_cache(maxsize=256)  # devices often have the same blocks
def _best_places(sizes: tuple[int, ...], window: int) -> tuple[list[int], int]:
    least = fullest_bytes(sizes, window)
    best: tuple[list[int], int] | None = None
    for wider in range(window, min(len(sizes), window + _WIDER_WINDOWS) + 1):
        for place in (_largest_first, _kind_by_kind):
            found = place(sizes, wider)
            if best is None or found[1] < best[1]:
                best = found
            if best[1] == least:
                return best
    return best or ([], 0)


def fullest_bytes(sizes: Sequence[int], window: int) -> int:
    """The most that `window` blocks which follow each other in the cycle take together."""
    count = len(sizes)
    held = min(window, count)
    return max((sum(sizes[(i + d) % count] for d in range(held)) for i in range(count)), default=0)


def _largest_first(sizes: Sequence[int], window: int) -> tuple[list[int], int]:
    """The largest blocks first, each at the lowest address that is free while it is held."""
    count = len(sizes)
    offsets = [-1] * count
    for block in sorted(range(count), key=lambda i: (-sizes[i], i)):
        near = {(block + d) % count for d in range(1 - window, window)} - {block}
        taken = sorted((offsets[i], offsets[i] + sizes[i]) for i in near if offsets[i] >= 0)
        address = 0
        for start, stop in taken:
            if address + sizes[block] <= start:
                break
            address = max(address, stop)
        offsets[block] = address
    return offsets, max((o + size for o, size in zip(offsets, sizes, strict=True)), default=0)


def _kind_by_kind(sizes: Sequence[int], window: int) -> tuple[list[int], int]:
    """Blocks of each size in slots of their own, which they take in turns.

    Of m blocks of which h are held at once, the cycle has room for m // h rounds through the slots.
    """
    count = len(sizes)
    offsets, end = [0] * count, 0
    for size in sorted(set(sizes), reverse=True):
        members = [i for i in range(count) if sizes[i] == size]
        held = max(
            sum(sizes[(first + d) % count] == size for d in range(min(window, count)))
            for first in range(count)
        )
        rounds = max(1, len(members) // held)
        cuts = [len(members) * i // rounds for i in range(rounds + 1)]
        for first, last in itertools.pairwise(cuts):
            for slot, block in enumerate(members[first:last]):
                offsets[block] = end + slot * size
        end += size * max(last - first for first, last in itertools.pairwise(cuts))
    return offsets, end


def place_at_ends(sizes: Sequence[int], ahead_bytes: int) -> tuple[list[int], int]:
    """Addresses for blocks in an area of the largest and `ahead_bytes` more, and its size.

    They lie at its two ends in turns and overlap in the middle: while one is held, so many bytes of
    the next ones fit beside it, and the rest comes when it is released. Blocks smaller than
    `ahead_bytes` take an end together with those after them.
    """
    runs = _runs(sizes, ahead_bytes)
    area = max((sum(run) for run in runs), default=0) + ahead_bytes
    area = min(area, sum(sizes))
    offsets = []
    for number, run in enumerate(runs):
        address = area - sum(run) if number % 2 else 0
        for size in run:
            offsets.append(address)
            address += size
    return offsets, area


def _runs(sizes: Sequence[int], least_bytes: int) -> list[list[int]]:
    """Consecutive blocks together until they have so many bytes."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and sum(runs[-1]) < least_bytes:
            runs[-1].append(size)
        else:
            runs.append([size])
    if len(runs) > 1 and sum(runs[-1]) < least_bytes:
        last = runs.pop()
        runs[-1] += last
    return runs


@dataclass(frozen=True)
class Piece:
    """Bytes [begin, end) of a block whose place is free `distance` visits later.

    They may be read once the block that is visited `distance` before theirs is released.
    """

    begin: int
    end: int
    distance: int


def pieces_of(
    sizes: Sequence[int], places: Sequence[int], window: int | None = None
) -> list[list[Piece]]:
    """Of each block, by who lay at its place before; with a window never sooner than it says."""
    count = len(sizes)
    spans = [(place, place + size) for place, size in zip(places, sizes, strict=True)]
    most = count if window is None else min(window, count)
    return [_pieces(spans, number, most) for number in range(count)]


def _pieces(spans: Sequence[Range], number: int, most: int) -> list[Piece]:
    """Of one block, those that may be read first at the head."""
    start = spans[number][0]
    free, found = [spans[number]], []
    for distance in range(1, most):
        before = spans[(number - distance) % len(spans)]
        found += [
            Piece(first - start, last - start, distance) for first, last in _overlaps(free, before)
        ]
        free = _without(free, before)
        if not free:
            break
    found += [Piece(first - start, last - start, most) for first, last in free]
    return sorted(found, key=lambda piece: (-piece.distance, piece.begin))


def _overlaps(ranges: Sequence[Range], other: Range) -> list[Range]:
    pairs = [(max(first, other[0]), min(last, other[1])) for first, last in ranges]
    return [(first, last) for first, last in pairs if first < last]


def _without(ranges: Sequence[Range], other: Range) -> list[Range]:
    parts = [
        part
        for first, last in ranges
        for part in ((first, min(last, other[0])), (max(first, other[1]), last))
    ]
    return [(first, last) for first, last in parts if first < last]
