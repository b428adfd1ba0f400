"""One block of one device, as it lies in a file. `models/block_layout.py` decides how."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tpi_bench.contract.model import BYTES_PER_VALUE

PAGE = 4096


@dataclass(frozen=True)
class Extent:
    """Bytes of a file: what is asked of a disk. Direct reads want multiples of 4096."""

    path: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorView:
    """Where a tensor lies in a block's data: `begin` bytes after the start of the data section.

    `dtype` is that of its elements. A quantised matrix (o, i) is two tensors: `NAME`, int8 (o, i)
    or uint8 (o, i / 2) with two values a byte, and `NAME.scales`, float16 (o, i / 32).
    """

    shape: tuple[int, ...]
    begin: int
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BYTES_PER_VALUE[self.dtype]


@dataclass(frozen=True, kw_only=True)
class BlockFile:
    """A block of one device as it is read: `nbytes` from `data_offset` on, a multiple of 4096."""

    path: str
    kind: str
    layer: int
    data_offset: int
    nbytes: int
    tensors: dict[str, TensorView]

    @property
    def extent(self) -> Extent:
        """Where its data is."""
        return Extent(self.path, self.data_offset, self.nbytes)

    @property
    def key(self) -> str:
        return self.kind if self.layer < 0 else f"{self.kind}_{self.layer}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights without padding."""
        return sum(view.nbytes for view in self.tensors.values())

    def part(self, begin: int, end: int) -> BlockFile:
        """Some of its data, whole pages, as something to read: without tensors."""
        assert begin % PAGE == end % PAGE == 0
        assert 0 <= begin <= end <= self.nbytes
        data_offset = self.data_offset + begin
        return replace(self, data_offset=data_offset, nbytes=end - begin, tensors={})

    def cut(self, at: int) -> tuple[BlockFile, BlockFile]:
        """The block as two: the data before `at`, a multiple of 4096, and the data from there on.

        Every tensor is in one of them; `at` lies between two.
        """
        assert at % PAGE == 0
        assert 0 <= at <= self.nbytes
        assert all(v.begin >= at or v.begin + v.nbytes <= at for v in self.tensors.values())
        first = {name: view for name, view in self.tensors.items() if view.begin < at}
        second = {
            name: replace(view, begin=view.begin - at)
            for name, view in self.tensors.items()
            if view.begin >= at
        }
        return (
            replace(self, nbytes=at, tensors=first),
            replace(
                self,
                data_offset=self.data_offset + at,
                nbytes=self.nbytes - at,
                tensors=second,
            ),
        )
