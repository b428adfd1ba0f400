"""One block of one device, as it lies in a file. `models/block_layout.py` decides how."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """Where a tensor lies in a block's data: `begin` bytes after the start of the data section."""

    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True, kw_only=True)
class BlockFile:
    """A block of one device as it is read: `nbytes` from `data_offset` on, a multiple of 4096."""

    path: str
    kind: str
    layer: int
    dtype: str
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
        return sum(math.prod(t.shape) for t in self.tensors.values()) * BYTES_PER_VALUE[self.dtype]
