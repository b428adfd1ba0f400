"""Matrices of ones to time products with, as files hold them and as weights of a device lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tpi_bench.contract.blocks import PAGE, TensorView
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import BYTES_PER_VALUE, GROUP, QUANTISED

if TYPE_CHECKING:
    import torch

    from tpi_bench.engine.matrix import Matrix

COLUMNS = 1024
Shape = tuple[int, int]  # (o, i)


def shape_of(held: str, nbytes: int, width: int = COLUMNS) -> Shape:
    """Of a matrix (o, i) of that width whose values take so many bytes."""
    num_values = 2 * nbytes if held == "q4" else nbytes // BYTES_PER_VALUE.get(held, 1)
    return num_values // width, width


def cut(held: str, shape: Shape, nbytes: int) -> Shape:
    """With fewer rows, where its values take more than so many bytes."""
    return min(shape, shape_of(held, nbytes, shape[1]))


def stored_ones(held: str, shape: Shape) -> list[torch.Tensor]:
    """A matrix (o, i) as block files hold it: its values, and scales if it has any."""
    import torch

    if held not in QUANTISED:
        return [torch.ones(shape, dtype=getattr(torch, held))]
    num_rows, width = shape
    scales = torch.ones(num_rows, width // GROUP, dtype=torch.float16)
    if held == "q4":
        return [torch.ones(num_rows, width // 2, dtype=torch.uint8), scales]
    return [torch.ones(shape, dtype=torch.int8), scales]


def matrices_of(held: str, shapes: Sequence[Shape], nbytes: int) -> list[Matrix]:
    """Of these shapes in turns, in one area: each once at least, `nbytes` together at most."""
    from tpi_bench.engine.matrix import Matrix

    stored = [stored_ones(held, shape) for shape in shapes]
    turn_bytes = sum(_whole_pages(tensor) for tensors in stored for tensor in tensors)
    num_turns = max(1, nbytes // turn_bytes)
    place = _copies(num_turns * turn_bytes)
    return [Matrix(*map(place, tensors)) for _ in range(num_turns) for tensors in stored]


def _copies(nbytes: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Puts a copy of each tensor behind the last, each at the beginning of a page, in memory of the
    kind that weights of a device lie in: huge pages.
    """
    import torch

    from tpi_bench.host.memory import anonymous_area

    room = torch.from_numpy(anonymous_area(nbytes))
    begin = 0

    def place(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal begin
        own = room[begin : begin + tensor.nbytes]
        begin += _whole_pages(tensor)
        return own.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    return place


def _whole_pages(tensor: torch.Tensor) -> int:
    """Bytes."""
    return -(-tensor.nbytes // PAGE) * PAGE


def shapes_of(job: Job) -> tuple[Shape, ...]:
    """Of a layer's matrices (o, i), on the first device that has some."""
    first: dict[str, dict[str, TensorView]] = {}
    for block in itertools.chain(*job.blocks):
        first.setdefault(block.kind, block.tensors)
    views = {**first.get("attn", {}), **first.get("ffn", {})}
    return tuple(
        (view.shape[0], view.shape[1] * (2 if view.dtype == "uint8" else 1))
        for name, view in views.items()
        if len(view.shape) > 1 and not name.endswith(".scales")
    )
