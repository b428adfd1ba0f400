"""What SimGrid's Python has in the place of torch: sizes without values.

The rank programs only cut tensors, make new ones, add and send them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import ModuleType

BYTES_PER_VALUE = 4


class Sizes:
    """A tensor of four-byte values of which only the shape is known."""

    dtype = "float32"
    is_meta = False

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel() * BYTES_PER_VALUE

    def view(self, *shape: int) -> Sizes:
        assert shape == (-1,)
        return Sizes(self.numel())

    def tensor_split(self, num_chunks: int) -> list[Sizes]:
        base, over = divmod(self.numel(), num_chunks)
        return [Sizes(base + (index < over)) for index in range(num_chunks)]

    def new_empty(self, shape: Sequence[int]) -> Sizes:
        return Sizes(*shape)

    def __getitem__(self, rows: slice) -> Sizes:
        return Sizes(len(range(*rows.indices(self.shape[0]))), *self.shape[1:])

    def __add__(self, other: Sizes) -> Sizes:
        assert self.shape == other.shape
        return Sizes(*self.shape)

    add_ = __iadd__ = __add__


def _cat(parts: Sequence[Sizes]) -> Sizes:
    return Sizes(sum(part.shape[0] for part in parts), *parts[0].shape[1:])


def stand_in_for_torch() -> None:
    """What `baselines/galaxy.py` imports when it runs."""
    torch = ModuleType("torch")
    torch.empty = lambda *shape, dtype: Sizes(*shape)  # type: ignore[attr-defined]
    torch.add = Sizes.__add__  # type: ignore[attr-defined]
    torch.cat = _cat  # type: ignore[attr-defined]
    sys.modules["torch"] = torch
