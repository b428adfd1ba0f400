"""What a device keeps and streams that meets the hidden state several times a token.

Its layers come in segments (`segments.py`); while others work on theirs, the whole next one is
loaded. So what is streamed of one segment has room at once, and what the memory has besides is
kept, of every layer alike. With one segment there is nothing to load ahead but what has just been
used (prima.cpp's prefetch-release conflict), so only the largest block has room beside what is
kept. No torch: launcher, limits and device plan alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.engine.budget import Planner
from tpi_bench.engine.look_up import look_up_bytes


def segments_of(blocks: Sequence[BlockFile]) -> list[list[int]]:
    """Indices of the blocks of layers that follow each other, the output head after the last."""
    found: list[list[int]] = []
    before = None
    for index, block in enumerate(blocks):
        if block.kind == "input":
            continue
        goes_on = block.kind == "output" or before in (block.layer, block.layer - 1)
        if found and goes_on:
            found[-1].append(index)
        else:
            found.append([index])
        before = block.layer
    return found


class SegmentPlanner(Planner):
    """Lays a segment's streamed parts side by side, each segment in the same area."""

    def _place(self, kept: Sequence[int], room: int) -> tuple[list[int], int]:
        parts = [
            [rest for index in segment if (rest := self._blocks[index].nbytes - kept[index])]
            for segment in segments_of(self._blocks)
        ]
        largest = max((rest for segment in parts for rest in segment), default=0)
        area = max(map(sum, parts), default=0) if len(parts) > 1 else largest
        if not any(kept[i] for i, block in enumerate(self._blocks) if block.layer >= 0):
            spare = room - sum(kept)
            if self._has_ends and not kept[0]:
                spare -= look_up_bytes(self._blocks[0], self._num_rows)
            area = min(area, max(largest, spare))
        return [place for segment in parts for place in _side_by_side(segment, area)], area


def _side_by_side(sizes: Sequence[int], area_bytes: int) -> list[int]:
    """Addresses one after another, from the start again where the area ends."""
    places, address = [], 0
    for size in sizes:
        if address + size > area_bytes:
            address = 0
        places.append(address)
        address += size
    return places
