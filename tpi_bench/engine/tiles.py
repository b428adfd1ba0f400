"""Products of weights with several rows at once, as in prefill, by torch.

torch multiplies tensors of one type. A weight that is held in another is widened a tile of rows at
a time, which stays in a cache until it is multiplied: that costs little beside the product itself.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tpi_bench.contract.model import GROUP, TILE_VALUES
from tpi_bench.engine.compiled import kernels
from tpi_bench.engine.task import OUT, SCALES, VALUES, Task

_LANES = 16  # fewest columns that a kernel takes


def multiply(
    x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor | None, shape: tuple[int, int]
) -> torch.Tensor:
    """x (T, i) times a weight of `shape` (o, i) transposed -> (T, o), in the type of x."""
    dtype = _product_type(x.dtype)
    rows = x.to(dtype).contiguous()
    if dtype == values.dtype:
        return _product(rows, values).to(x.dtype)
    return in_tiles(rows, values, scales, shape).to(x.dtype)


def in_tiles(
    rows: torch.Tensor, values: torch.Tensor, scales: torch.Tensor | None, shape: tuple[int, int]
) -> torch.Tensor:
    """The same in the type of `rows`, a tile of the weight after another."""
    out = rows.new_empty((rows.shape[0], shape[0]))
    for part, tile in tiles_of(values, scales, shape, rows.dtype):
        out[:, part] = _product(rows, tile)
    return out


def tiles_of(
    values: torch.Tensor,
    scales: torch.Tensor | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of a weight, and what they are in `dtype` until the next is asked for."""
    num_rows, cols = shape
    step = max(1, TILE_VALUES // cols)
    for first in range(0, num_rows, step):
        part = slice(first, first + step)
        if values.dtype == dtype:
            yield part, values[part]
        else:
            yield part, _tile(values[part], None if scales is None else scales[part], dtype)


def widened(values: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a weight in `dtype`, in new memory unless they are in it already."""
    if scales is None:
        return values.to(dtype)
    rows = values.shape[0]
    if values.dtype == torch.uint8:
        groups = values.view(rows, -1, GROUP // 2)
        numbers = torch.cat((groups & 15, groups >> 4), dim=-1).float() - 8
    else:
        numbers = values.view(rows, -1, GROUP).float()
    return (numbers * scales.float()[:, :, None]).view(rows, -1).to(dtype)


def _tile(values: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a weight in `dtype`, in memory that the next tile takes too."""
    kernel = kernels().get(f"{_name(values.dtype)}_to_{_name(dtype)}")
    rows, cols = values.shape[0], values.shape[1] * (2 if values.dtype == torch.uint8 else 1)
    if kernel is None or cols < _LANES:
        return widened(values, scales, dtype)
    tile = _room(dtype, max(TILE_VALUES, cols))[: rows * cols].view(rows, cols)
    task, num_threads = Task(rows, cols), torch.get_num_threads()
    task.point(VALUES, values)
    task.point(SCALES, scales)
    task.point(OUT, tile)
    task.begin(num_threads)
    kernel(task.place, num_threads)
    return tile


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _room(dtype: torch.dtype, num_values: int) -> torch.Tensor:
    return torch.empty(num_values, dtype=dtype)


@functools.cache
def _product_type(dtype: torch.dtype) -> torch.dtype:
    """What to multiply in: torch is many times slower in a half type that the CPU lacks."""
    known = {
        torch.float16: "_is_mkldnn_fp16_supported",
        torch.bfloat16: "_is_mkldnn_bf16_supported",
    }
    if dtype == torch.float32 or getattr(torch.ops.mkldnn, known[dtype])():
        return dtype
    return torch.float32


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (T, i) times a weight (o, i) of the same type, transposed."""
    if x.dtype == torch.float32:
        if x.shape[0] == 1:
            return _one_row(x, weight)
        if _has_mkldnn():
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            return out
    return F.linear(x, weight)


@functools.cache
def _has_mkldnn() -> bool:
    """For fp32 torch asks MKL; this took 0.69 of its time for 32 rows on a Sapphire Rapids, 0.88
    for 128 and as long for 512.
    """
    is_there = torch.backends.mkldnn.is_available() and platform.machine() == "x86_64"
    return is_there and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _one_row(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (1, i) in fp32, where there is no kernel: a batched product over chunks of rows.

    torch's own matrix-times-vector uses one thread and stays far from memory bandwidth.
    """
    rows, cols = weight.shape
    for chunks in (8, 4, 2):
        if rows % chunks == 0:
            # The transposed row keeps a stride that BLAS takes as it is; a (cols, 1) view does not.
            column = x.expand(chunks, 1, cols).transpose(1, 2)
            return torch.bmm(weight.view(chunks, rows // chunks, cols), column).view(1, rows)
    return F.linear(x, weight)
