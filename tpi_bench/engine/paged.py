"""Weights in mapped files, which the kernel pages in when they are touched, and evicts as it likes.

Two ways that real libraries have: a file is mapped once and for all, or each matrix anew for every
use. `window.py` has the ways that read into memory of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpi_bench.contract.blocks import PAGE, BlockFile
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.budget import cuts_of
from tpi_bench.engine.kept import load_kept
from tpi_bench.engine.weights import Weights, weights_in

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import Runtime


class MappedWeights:
    """Blocks as mapped files. Nothing is asked for ahead, nothing is given back."""

    def __init__(self, rt: Runtime, blocks: Sequence[BlockFile]) -> None:
        self._rt = rt
        self._blocks = blocks
        self._views: dict[int, Weights] = {}
        for block in blocks:
            rt.map(block, 0)

    def acquire(self, index: int) -> Weights:
        block = self._blocks[index]
        # Of the input embedding only the rows that are looked up.
        data = self._rt.map(block, PAGE if block.kind == "input" else block.nbytes)
        views = self._views.get(index)
        if views is None:
            views = self._views[index] = weights_in(block, data)
        return views

    def look_up(self, index: int, rows: list[int]) -> tuple[Weights, list[int]]:
        return self.acquire(index), rows

    def release(self, index: int) -> None:
        """The kernel will see to it."""

    def close(self) -> None:
        """Mappings end with the device."""


class FaultedWeights:
    """Each matrix a new mapping when it is needed, which ends after its use; some blocks stay."""

    def __init__(self, rt: Runtime, blocks: Sequence[BlockFile], streaming: Streaming) -> None:
        self._rt = rt
        self._blocks = blocks
        self._kept = load_kept(rt, streaming.kept)

    def acquire(self, index: int) -> Weights:
        if index in self._kept:
            return self._kept[index]
        rest, weights = self._blocks[index], Weights({}, {})
        is_table = rest.kind == "input"  # of which only the rows that are looked up are touched
        before = 0
        for cut in cuts_of(rest):
            matrix, rest = rest.cut(cut - before)
            before = cut
            data = self._rt.map(matrix, PAGE if is_table else matrix.nbytes, anew=True)
            weights |= weights_in(matrix, data)
        return weights

    def look_up(self, index: int, rows: list[int]) -> tuple[Weights, list[int]]:
        return self.acquire(index), rows

    def release(self, index: int) -> None:
        """Mappings end with their tensors."""

    def close(self) -> None:
        """Nothing is on its way."""
