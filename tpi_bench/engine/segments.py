"""Weights of a device that meets the hidden state several times a token, a segment of layers each.

Between two of them others work; that is when the next segment is loaded (prima.cpp, arXiv
2504.08791, prefetching). So nothing is read when a block is released: `prefetch` asks for all that
has room, and the program calls it when it has sent on what it computed. A block that was not asked
for by then is read when it is needed, as a page fault would, and waited for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.window import WeightSource, Window, weight_source

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime
    from tpi_bench.engine.weights import Weights


class SegmentWindow(Window):
    """As a `Window`, which reads what is released for at `prefetch` or, at last, at `acquire`."""

    def __init__(
        self, rt: Runtime, blocks: Sequence[BlockFile], streaming: Streaming, most_rows: int = 1
    ) -> None:
        self._asked = 0  # the loads that are due after so many releases have been asked for
        super().__init__(rt, blocks, streaming, most_rows)
        count = len(self._streamed)
        self._loads: dict[int, list[tuple[int, BlockFile, torch.Tensor]]] = defaultdict(list)
        for releases, loads in self._due.items():
            for ahead, source, target in loads:
                self._loads[(releases + ahead) % count].append((ahead, source, target))

    def prefetch(self) -> None:
        """Ask for everything that has room by now."""
        for count in range(self._asked + 1, self._released + 1):
            self._issue(count)
        self._asked = max(self._asked, self._released)

    def acquire(self, index: int) -> Weights:
        if index in self._keys and self._streamed[self._visited % len(self._streamed)] == index:
            visit = self._visited
            for ahead, source, target in self._loads[visit % len(self._streamed)]:
                if visit - ahead > self._asked:
                    self._in_flight[visit].append(self._rt.read(source, target))
        return super().acquire(index)

    def release(self, index: int) -> None:
        if index in self._keys:
            self._released += 1

    def _issue(self, count: int) -> None:
        """Without what was needed, and read, before it was asked for."""
        for ahead, source, target in self._due.get(count % max(1, len(self._streamed)), ()):
            if count + ahead >= self._visited:
                self._in_flight[count + ahead].append(self._rt.read(source, target))


def segment_source(
    rt: Runtime, blocks: Sequence[BlockFile], streaming: Streaming, most_rows: int
) -> WeightSource:
    """A `SegmentWindow`, unless weights are read another way than ahead."""
    if streaming.loading == "overlapped":
        return SegmentWindow(rt, blocks, streaming, most_rows)
    return weight_source(rt, blocks, streaming, most_rows)
