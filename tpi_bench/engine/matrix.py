"""A weight as it lies in memory, and its product with hidden states.

One row, as in decoding, is multiplied by a compiled kernel (`kernels.py`) at the speed of the
memory, and so are a few, as in speculative decoding, each with the bits that it gets alone. More
rows, and all where there are no kernels, are multiplied by torch (`tiles.py`).

Virtual time counts operators as torch dispatches them: on the meta device and under a dispatch
mode a product is one operator of torch, `tpi_bench::product`, whatever runs it.
"""

from __future__ import annotations

import functools

import torch
from torch import library

from tpi_bench.contract.model import FEW, GROUP, QUANTISED
from tpi_bench.engine import compiled, tiles
from tpi_bench.engine.compiled import Kernel, is_traced, kernels
from tpi_bench.engine.task import DIGITS, NUM_NEW, OUT, PART, SCALES, VALUES, Task, X

_HELD = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int8: "q8",
    torch.uint8: "q4",
}
_BLOCK = 4 * GROUP  # columns that q4's kernel multiplies at once (digits.py)
_BLOCK_BYTES = 512
_MOST_COLS, _MOST_COLS_OF_NUMBERS, _ALL_COLS = 4096, 6144, 1 << 62
# Fewest columns that a kernel takes.
_FEWEST_COLS = {"float32": 16, "float16": 16, "bfloat16": 16, "q8": GROUP, "q4": _BLOCK}


class Matrix:
    """A weight (o, i): values in a float type, or numbers with a scale for each group of 32.

    q8 has int8 numbers (o, i), q4 uint8 (o, i / 2): byte j of a group holds value j in its low half
    and value j + 16 in the high one, each plus 8. Scales are float16 (o, i / 32). The tensors stay
    where they are; what is in them may change.
    """

    def __init__(self, values: torch.Tensor, scales: torch.Tensor | None = None) -> None:
        assert all(t is None or t.is_contiguous() for t in (values, scales))
        self.values, self.scales = values, scales
        self.weights = _HELD[values.dtype]
        self.shape = (values.shape[0], values.shape[1] * (2 if self.weights == "q4" else 1))
        self._kernel, self._split = _kernels_for(self.weights, self.shape[1])
        if not values.is_meta:
            self._task = self._new_task()

    def _new_task(self) -> Task:
        task = Task(*self.shape)
        task.point(VALUES, self.values)
        task.point(SCALES, self.scales)
        task.put(PART, cols_at_a_time(self.weights, self.shape[1]))
        return task

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, i) times the weight transposed -> (T, o), in the type of x."""
        if is_traced(x):
            out: torch.Tensor = torch.ops.tpi_bench.product(x, self.values, self.scales)
            return out
        if x.shape[0] <= FEW and self._kernel is not None:
            return self._few_rows(x, self._kernel)
        return tiles.multiply(x, self.values, self.scales, self.shape)

    def _few_rows(self, x: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        num_rows = x.shape[0]
        rows = x.float().contiguous()
        out = torch.empty((num_rows, self.shape[0]))
        task, num_threads = self._task, torch.get_num_threads()
        task.point(X, rows)
        task.point(OUT, out)
        task.put(NUM_NEW, num_rows)
        task.begin(num_threads)
        if self._split is not None:
            task.point(DIGITS, _digits(self.shape[1]))
            self._split(task.place)
        kernel(task.place, num_threads)
        return out.to(x.dtype)

    def rows(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of the weight (T, i) in `dtype`, for indices (T,)."""
        scales = None if self.scales is None else self.scales[indices]
        return tiles.widened(self.values[indices], scales, dtype)


def cols_at_a_time(weights: str, cols: int) -> int:
    """Of a row, in the kernels: all, or parts of about the same size."""
    num_parts = -(-cols // most_cols(weights))
    return cols if num_parts == 1 else -(-cols // (num_parts * _BLOCK)) * _BLOCK


@functools.cache
def most_cols(weights: str) -> int:
    """That are multiplied at a time, so that a vector stays in the first cache beside the weights.

    On a Zen 4 with 32 KiB, longer rows were read at half the rate: 12 GB/s of bfloat16 with one
    thread for 22, 14336 columns. Elsewhere nothing was measured to gain by it.
    """
    if not compiled.is_amd_zen():
        return _ALL_COLS
    return _MOST_COLS_OF_NUMBERS if weights in QUANTISED else _MOST_COLS


def kernel_name(weights: str) -> str:
    """What multiplies one row by such weights on this host."""
    return f"numba {weights}" if weights in kernels() else "torch"


def prepare_kernels() -> None:
    """Compile all kernels, or load them from the disk; no thread is started."""
    compiled.prepare()


def _kernels_for(weights: str, cols: int) -> tuple[Kernel | None, Kernel | None]:
    """The product's kernel, and the one that has to run before it."""
    if cols < _FEWEST_COLS[weights]:
        return None, None
    return kernels().get(weights), kernels().get("split_x") if weights == "q4" else None


@functools.cache
def _digits(cols: int) -> torch.Tensor:
    """Room for the digits of a few vectors; all matrices with so many columns share it."""
    return torch.zeros(FEW * -(-cols // _BLOCK) * _BLOCK_BYTES, dtype=torch.uint8)


@library.custom_op("tpi_bench::product", mutates_args=())
def _product(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return Matrix(values, scales)(x)


@_product.register_fake
def _(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((x.shape[0], values.shape[0]))
