"""Where a device's weights come from: the sliding window, or mapped files. See `streaming.py`.

Releasing a block starts the load of the next one, which then runs behind compute and allreduce and
wraps around into the next token (TPI-LLM, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tpi_bench.contract.blocks import PAGE, BlockFile
from tpi_bench.contract.model import BYTES_PER_VALUE
from tpi_bench.engine.streaming import WindowConfig, place_blocks, resident_indices

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import ReadHandle, Runtime


class WeightSource(Protocol):
    """Weights of one device's blocks, by index, in the cyclic order of a token."""

    def acquire(self, index: int) -> dict[str, torch.Tensor]:
        """The block's tensors. Valid until `release(index)`."""
        ...

    def release(self, index: int) -> None: ...

    def close(self) -> None: ...


def weight_source(rt: Runtime, blocks: Sequence[BlockFile], config: WindowConfig) -> WeightSource:
    """Where the device gets its weights from."""
    return MappedWeights(rt, blocks) if config.loading == "mmap" else Window(rt, blocks, config)


class MappedWeights:
    """Blocks as mapped files. Nothing is asked for ahead, nothing is given back."""

    def __init__(self, rt: Runtime, blocks: Sequence[BlockFile]) -> None:
        self._rt = rt
        self._blocks = blocks
        self._views: dict[int, dict[str, torch.Tensor]] = {}
        for block in blocks:
            rt.map(block, 0)

    def acquire(self, index: int) -> dict[str, torch.Tensor]:
        block = self._blocks[index]
        # Of the input embedding only the rows that are looked up.
        data = self._rt.map(block, PAGE if block.kind == "input" else block.nbytes)
        views = self._views.get(index)
        if views is None:
            views = self._views[index] = tensor_views(block, data)
        return views

    def release(self, index: int) -> None:
        """The kernel will see to it."""

    def close(self) -> None:
        """Mappings end with the device."""


class Window:
    """Weights of one device's blocks, by index. `acquire` and `release` follow the cyclic order."""

    def __init__(self, rt: Runtime, blocks: Sequence[BlockFile], config: WindowConfig) -> None:
        self._rt = rt
        self._blocks = blocks
        self._views: dict[int, dict[str, torch.Tensor]] = {}
        self._targets: dict[int, torch.Tensor] = {}
        resident = resident_indices(blocks, config)
        self._streamed = [i for i in range(len(blocks)) if i not in resident]
        self._size = config.size or 0
        self._is_blocking = config.loading == "blocking"
        self._acquired = self._issued = self._released = 0
        self._in_flight: dict[int, ReadHandle] = {}
        self._load_resident(sorted(resident))
        self._place_streamed()
        if not self._is_blocking:
            self._issue()

    def acquire(self, index: int) -> dict[str, torch.Tensor]:
        """The block's tensors; waits only if the disk is late. Valid until `release(index)`."""
        if self._streamed and index in self._targets:
            assert index == self._streamed[self._acquired % len(self._streamed)], (
                "blocks out of order"
            )
            if self._is_blocking:
                self._issue()
            handle = self._in_flight.pop(self._acquired)
            self._rt.waiting(handle, self._blocks[index].key)
            self._acquired += 1
        return self._views[index]

    def release(self, index: int) -> None:
        """Give the block's memory back; the next load starts at once."""
        if index in self._targets:
            self._released += 1
            if not self._is_blocking:
                self._issue()

    def close(self) -> None:
        """Wait for loads that nobody will use, so that no read outlives its buffer."""
        for handle in self._in_flight.values():
            handle.wait()
        self._in_flight.clear()

    def _load_resident(self, indices: list[int]) -> None:
        """One area, all reads at once; tied input and output blocks are one file in one place."""
        offsets: dict[int, int] = {}
        shared: dict[str, int] = {}
        total = 0
        for index in indices:
            block = self._blocks[index]
            is_end = block.kind in ("input", "output")
            if is_end and block.path in shared:
                offsets[index] = offsets[shared[block.path]]
                continue
            if is_end:
                shared[block.path] = index
            offsets[index] = total
            total += block.nbytes
        if not indices:
            return
        area = self._rt.alloc("weights", total)
        reads: dict[int, ReadHandle] = {}
        for index, offset in offsets.items():
            block = self._blocks[index]
            data = area[offset : offset + block.nbytes]
            self._views[index] = tensor_views(block, data)
            if offset not in reads:
                reads[offset] = self._rt.read(block, data)
        for handle in reads.values():
            self._rt.waiting(handle, "resident")

    def _place_streamed(self) -> None:
        sizes = [self._blocks[i].nbytes for i in self._streamed]
        if not sizes:
            return
        offsets, total = place_blocks(sizes, self._size)
        arena = self._rt.alloc("window", total)
        for index, offset, size in zip(self._streamed, offsets, sizes, strict=True):
            self._targets[index] = arena[offset : offset + size]
            self._views[index] = tensor_views(self._blocks[index], self._targets[index])

    def _issue(self) -> None:
        while self._streamed and self._issued - self._released < self._size:
            index = self._streamed[self._issued % len(self._streamed)]
            self._in_flight[self._issued] = self._rt.read(self._blocks[index], self._targets[index])
            self._issued += 1


def tensor_views(block: BlockFile, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """The block's tensors as views of `data` (uint8, at least `block.nbytes` long). No copy."""
    import torch

    dtype = getattr(torch, block.dtype)
    views = {}
    for name, view in block.tensors.items():
        nbytes = math.prod(view.shape) * BYTES_PER_VALUE[block.dtype]
        views[name] = data[view.begin : view.begin + nbytes].view(dtype).view(view.shape)
    return views
