"""Where a device's weights come from: the sliding window, and the two ways it is compared with.

TPI-LLM, section 3.3. Blocks are visited in a fixed cyclic order, once a token. At most `size`
streamed blocks are held; releasing one starts the load of the next, which then runs behind compute
and allreduce and wraps around into the next token. Blocks in `resident` are loaded once and kept
(all of them when the window is off; every T-th FFN block with retention, Proposition 6).

`blocking` is the same window without the overlap, as Accelerate offloads: a block is read when it
is needed and given up after it. `mmap` is llama.cpp's way: files are mapped, the kernel pages them
in when they are touched and evicts what it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tpi_bench.plans import place_blocks
from tpi_bench.weights import PAGE, BlockFile, tensor_views

if TYPE_CHECKING:
    import torch

    from tpi_bench.runtime import ReadHandle, Runtime


LOADINGS = ("overlapped", "blocking", "mmap")


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """`size` None holds everything; `retain_every` T keeps each T-th FFN block, 0 keeps none."""

    size: int | None = None
    retain_every: int = 0
    resident_io: bool = False
    loading: str = "overlapped"


def parse_window(
    window: object, retain_every: int, resident_io: bool, loading: str = "overlapped"
) -> WindowConfig:
    """From `system.window` and its companions; YAML reads `off` as False."""
    if loading not in LOADINGS:
        raise ValueError(
            f"system.loading={loading} is unknown; choose one of {', '.join(LOADINGS)}"
        )
    size: int | None
    if window is None or window is False or str(window).lower() == "off":
        size = None
    elif isinstance(window, int) and window is not True and window >= 1:
        size = window
    else:
        raise ValueError(f"system.window={window} must be a whole number of at least 1, or off")
    if isinstance(retain_every, bool) or retain_every < 0:
        raise ValueError(
            f"system.retain_every={retain_every} must be at least 0 (0 keeps no block)"
        )
    if loading == "blocking" and size not in (None, 1):
        raise ValueError(
            f"system.window={size} with system.loading=blocking, which holds the one block that is "
            "in use; set system.window to off"
        )
    if loading == "mmap" and (size is not None or retain_every or resident_io):
        raise ValueError(
            "with system.loading=mmap the kernel decides what is held; set system.window to off, "
            "retain_every to 0 and resident_io to false"
        )
    return WindowConfig(
        size=1 if loading == "blocking" else size,
        retain_every=retain_every,
        resident_io=bool(resident_io),
        loading=loading,
    )


def resident_indices(blocks: Sequence[BlockFile], config: WindowConfig) -> set[int]:
    """Indices of the blocks that are loaded once and kept."""
    if config.size is None:
        return set(range(len(blocks)))
    kept = set()
    for index, block in enumerate(blocks):
        is_io = block.kind in ("input", "output")
        is_retained = (
            config.retain_every > 0
            and block.kind == "ffn"
            and (block.layer + 1) % config.retain_every == 0
        )
        if (is_io and config.resident_io) or is_retained:
            kept.add(index)
    if config.size >= len(blocks) - len(kept):
        return set(range(len(blocks)))
    return kept


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
