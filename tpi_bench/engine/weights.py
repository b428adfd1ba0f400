"""A block's weights as its math wants them: matrices that multiply, and vectors.

Views of a block file's data, made once for each place that a block is read into; nothing is copied.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tpi_bench.contract.blocks import BlockFile, TensorView
from tpi_bench.engine.matrix import Matrix

_SCALES = ".scales"


@dataclass(frozen=True)
class Weights:
    """Of one block, by name. Vectors are norms (h,) and biases."""

    matrices: dict[str, Matrix]
    vectors: dict[str, torch.Tensor]

    def __or__(self, other: Weights) -> Weights:
        """The tensors of both: a block whose parts lie in two places."""
        return Weights(self.matrices | other.matrices, self.vectors | other.vectors)


def weights_in(block: BlockFile, data: torch.Tensor) -> Weights:
    """The block's tensors as views of `data` (uint8, at least `block.nbytes` long)."""
    if data.is_meta:
        return _without_data(tuple(block.tensors.items()))
    return _views(block.tensors, data)


@functools.lru_cache(maxsize=1024)
def _without_data(layout: tuple[tuple[str, TensorView], ...]) -> Weights:
    """All blocks with this layout have the same: there are hundreds on hundreds of devices."""
    nbytes = max((view.begin + view.nbytes for _, view in layout), default=0)
    return _views(dict(layout), torch.empty(nbytes, dtype=torch.uint8, device="meta"))


def _views(tensors: Mapping[str, TensorView], data: torch.Tensor) -> Weights:
    views = {
        name: data[view.begin : view.begin + view.nbytes]
        .view(getattr(torch, view.dtype))
        .view(view.shape)
        for name, view in tensors.items()
    }
    matrices = {
        name: Matrix(view, views.get(name + _SCALES))
        for name, view in views.items()
        if view.dim() == 2 and not name.endswith(_SCALES)
    }
    vectors = {name: view for name, view in views.items() if view.dim() == 1}
    return Weights(matrices, vectors)
