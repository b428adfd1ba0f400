"""Weights that are loaded once, when a device starts, and kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.engine.weights import Weights, weights_in

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import ReadHandle, Runtime


def load_kept(rt: Runtime, kept: Sequence[BlockFile | None]) -> dict[int, Weights]:
    """One area, all reads at once; tied input and output blocks are one file in one place."""
    parts = {index: part for index, part in enumerate(kept) if part is not None}
    if not parts:
        return {}
    offsets: dict[int, int] = {}
    shared: dict[str, int] = {}
    total = 0
    for index, part in parts.items():
        is_end = part.layer < 0
        offsets[index] = shared.get(part.path, total) if is_end else total
        if offsets[index] == total:
            total += part.nbytes
        if is_end:
            shared[part.path] = offsets[index]
    area = rt.alloc("weights", total)
    views: dict[int, Weights] = {}
    reads: dict[int, ReadHandle] = {}
    for index, offset in offsets.items():
        data = area[offset : offset + parts[index].nbytes]
        views[index] = weights_in(parts[index], data)
        if offset not in reads:
            reads[offset] = rt.read(parts[index], data)
    for handle in reads.values():
        rt.waiting(handle, "resident")
    return views
