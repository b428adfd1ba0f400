"""Where a device's weights come from: the sliding window, or mapped files. See `streaming.py`.

Releasing a block starts the load of what comes to its place, which then runs behind compute and
allreduce and wraps around into the next token (TPI-LLM, section 3.3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.kept import load_kept
from tpi_bench.engine.look_up import RowsOnDisk
from tpi_bench.engine.paged import FaultedWeights, MappedWeights
from tpi_bench.engine.placement import pieces_of
from tpi_bench.engine.weights import Weights, weights_in

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import ReadHandle, Runtime


class WeightSource(Protocol):
    """Weights of one device's blocks, by index, in the cyclic order of a token."""

    def acquire(self, index: int) -> Weights:
        """The block's tensors. Valid until `release(index)`."""
        ...

    def look_up(self, index: int, rows: list[int]) -> tuple[Weights, list[int]]:
        """As `acquire`, of a block of which rows are wanted: where they are in its matrices."""
        ...

    def release(self, index: int) -> None: ...

    def close(self) -> None: ...


def weight_source(
    rt: Runtime, blocks: Sequence[BlockFile], streaming: Streaming, most_rows: int
) -> WeightSource:
    """Where the device gets its weights from; at most so many rows are looked up at once."""
    if streaming.loading == "mmap":
        return MappedWeights(rt, blocks)
    if streaming.loading == "faulted":
        return FaultedWeights(rt, blocks, streaming)
    return Window(rt, blocks, streaming, most_rows)


class Window:
    """Weights of one device's blocks, by index. `acquire` and `release` follow the cyclic order.

    A visit is the use of a streamed block; they are counted from 0 over the whole run.
    """

    def __init__(
        self, rt: Runtime, blocks: Sequence[BlockFile], streaming: Streaming, most_rows: int = 1
    ) -> None:
        self._rt = rt
        self._views = load_kept(rt, streaming.kept)
        self._visited = self._released = 0
        self._in_flight: dict[int, list[ReadHandle]] = defaultdict(list)
        self._is_blocking = streaming.loading == "blocking"
        self._streamed = [i for i, part in enumerate(streaming.streamed) if part is not None]
        self._place_streamed(streaming)
        self._table: RowsOnDisk | None = None
        if blocks and 0 not in self._views:
            self._table = RowsOnDisk(rt, blocks[0], most_rows)
        if not self._is_blocking:
            for count in range(1 - len(self._streamed), 1):
                self._issue(count)

    def acquire(self, index: int) -> Weights:
        """The block's tensors; waits only if the disk is late. Valid until `release(index)`."""
        if index in self._keys:
            due = self._streamed[self._visited % len(self._streamed)]
            if index != due:
                raise ValueError(
                    f"block {index} ({self._keys[index]}) was asked for, but block {due} "
                    f"({self._keys[due]}) is next: with a window each step visits all streamed "
                    "blocks once, in their order"
                )
            if self._is_blocking:
                self._issue(self._visited)
            for handle in self._in_flight.pop(self._visited):
                self._rt.waiting(handle, self._keys[index])
            self._visited += 1
        return self._views[index]

    def look_up(self, index: int, rows: list[int]) -> tuple[Weights, list[int]]:
        """From the disk, if the block is neither kept nor streamed."""
        if index in self._views:
            return self.acquire(index), rows
        if index or self._table is None:
            raise ValueError(
                f"rows of block {index} were asked for, which this device does not have; rows are "
                "looked up in block 0, the master's input embedding"
            )
        return self._table.weights(rows)

    def release(self, index: int) -> None:
        """Give the block's memory back; what comes to its place is asked for at once."""
        if index in self._keys:
            self._released += 1
            if not self._is_blocking:
                self._issue(self._released)

    def close(self) -> None:
        """Wait for loads that nobody will use, so that no read outlives its buffer."""
        for handles in self._in_flight.values():
            for handle in handles:
                handle.wait()
        self._in_flight.clear()

    def _place_streamed(self, streaming: Streaming) -> None:
        """Views of each streamed part, and what is to be read after how many releases."""
        self._keys: dict[int, str] = {}
        # By the releases until then, modulo their number in a token: (visits ahead, from, to).
        self._due: dict[int, list[tuple[int, BlockFile, torch.Tensor]]] = defaultdict(list)
        parts = streaming.streamed_parts
        if not parts:
            return
        arena = self._rt.alloc("window", streaming.area_bytes)
        sizes = [part.nbytes for part in parts]
        pieces = pieces_of(sizes, streaming.places, streaming.window)
        for number, (index, part) in enumerate(zip(self._streamed, parts, strict=True)):
            place = streaming.places[number]
            data = arena[place : place + part.nbytes]
            views = weights_in(part, data)
            kept = self._views.get(index)
            self._views[index] = views if kept is None else kept | views
            self._keys[index] = part.key
            for piece in pieces[number]:
                source = part.part(piece.begin, piece.end)
                load = (piece.distance - 1, source, data[piece.begin : piece.end])
                self._due[(number - piece.distance + 1) % len(parts)].append(load)
        for loads in self._due.values():
            loads.sort(key=lambda load: load[0])

    def _issue(self, count: int) -> None:
        """Start the reads that are due after so many releases."""
        for ahead, source, target in self._due.get(count % max(1, len(self._streamed)), ()):
            if count + ahead >= 0:
                self._in_flight[count + ahead].append(self._rt.read(source, target))
