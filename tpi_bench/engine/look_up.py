"""Rows of an input embedding that stays on the disk: only their pages are read, each time anew.

A token needs one row, a few kilobytes, and a prompt as many as it has different tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tpi_bench.contract.blocks import PAGE, BlockFile, TensorView

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import ReadHandle, Runtime
    from tpi_bench.engine.weights import Weights

_ALIGNMENT = 64
_AT_ONCE = 32  # rows whose pages are held: a prompt's come in turns


def look_up_bytes(block: BlockFile, most_rows: int) -> int:
    """Memory for looking up so many rows: the pages of some of them, and the rows."""
    return _pages_bytes(block, most_rows) + _packed(block, most_rows).nbytes


class RowsOnDisk:
    """An input embedding of which rows are read when they are asked for."""

    def __init__(self, rt: Runtime, block: BlockFile, most_rows: int) -> None:
        self._rt = rt
        self._block = block
        self._most_rows = most_rows
        area = rt.alloc("window", look_up_bytes(block, most_rows))
        self._pages = area[: _pages_bytes(block, most_rows)]
        self._rows = area[len(self._pages) :]

    def weights(self, rows: Sequence[int]) -> tuple[Weights, list[int]]:
        """Weights with these rows of the table, and where in them each is. Valid until the next."""
        from tpi_bench.engine.weights import weights_in

        if len(rows) > self._most_rows:
            raise ValueError(
                f"{len(rows)} rows of the embedding were asked for in one step, but there is room "
                f"for {self._most_rows} (request.most_new)"
            )
        places = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        packed = _packed(self._block, len(places))
        pairs = list(places.items())
        for start in range(0, len(pairs), _AT_ONCE):
            self._fetch(pairs[start : start + _AT_ONCE], packed)
        return weights_in(packed, self._rows), [places[row] for row in rows]

    def _fetch(self, some: Sequence[tuple[int, int]], packed: BlockFile) -> None:
        """Read rows and put them in their places, both in pairs."""
        reads: list[ReadHandle] = []
        copies: list[tuple[int, torch.Tensor]] = []
        slot = 0
        for name, table in _tables(self._block).items():
            size, first = _row_bytes(table), packed.tensors[name].begin
            for row, place in some:
                begin = table.begin + row * size
                piece = self._block.part(begin // PAGE * PAGE, -(-(begin + size) // PAGE) * PAGE)
                pages = self._pages[slot : slot + piece.nbytes]
                reads.append(self._rt.read(piece, pages))
                copies.append((first + place * size, pages[begin % PAGE : begin % PAGE + size]))
                slot += _slot_bytes(table)
        for read in reads:
            self._rt.waiting(read, self._block.key)
        for target, row_bytes in copies:
            self._rows[target : target + len(row_bytes)] = row_bytes


def _tables(block: BlockFile) -> dict[str, TensorView]:
    """What has a row a token: the embedding's numbers, and its scales if it is quantised."""
    return {name: view for name, view in block.tensors.items() if len(view.shape) == 2}


def _row_bytes(table: TensorView) -> int:
    return table.nbytes // table.shape[0]


def _slot_bytes(table: TensorView) -> int:
    """The pages that a row may touch, wherever it begins."""
    return -(-(PAGE - 1 + _row_bytes(table)) // PAGE) * PAGE


def _pages_bytes(block: BlockFile, most_rows: int) -> int:
    slots_bytes = sum(_slot_bytes(table) for table in _tables(block).values())
    return min(most_rows, _AT_ONCE) * slots_bytes


def _packed(block: BlockFile, num_rows: int) -> BlockFile:
    """The block with so many rows, and nothing but tables."""
    tensors: dict[str, TensorView] = {}
    position = 0
    for name, table in _tables(block).items():
        tensors[name] = replace(table, shape=(num_rows, *table.shape[1:]), begin=position)
        position += math.ceil(tensors[name].nbytes / _ALIGNMENT) * _ALIGNMENT
    return replace(block, nbytes=position, tensors=tensors)
