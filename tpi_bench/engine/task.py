"""What a compiled kernel is told: whole numbers at agreed places of an array.

Several threads may run a kernel on one task at once: each takes a share of the rows, and another,
until none are left.
"""

from __future__ import annotations

import torch

# Places in the array. Rows that are taken, rows of a share, addresses of tensors.
NEXT, SHARE, ROWS, COLS, VALUES, SCALES, X, OUT, DIGITS = range(9)
# Of attention and norms; REAL is a float64.
KEYS, KV_HEADS, HEAD_TO_KV, STRIDE, POSITION, COS, SIN, SCRATCH, PITCH, REAL = range(9, 19)
NUM_NEW = 19  # vectors that are multiplied at once, or positions
PART = 20  # columns that are multiplied at a time, all or a multiple of 128
_NUM_FIELDS = 21
_SHARES = 8  # of each thread: a thread that is late leaves the others little to wait for
_ROWS_IN_PARTS = 16  # few enough that they stay in the second cache until their last part


class Task:
    """A product with a weight (o, i), or another work on one."""

    def __init__(self, rows: int, cols: int) -> None:
        array = torch.zeros(_NUM_FIELDS, dtype=torch.int64)
        self.place = array.data_ptr()
        self._fields = array.numpy()  # keeps the array
        self._reals = array.view(torch.float64).numpy()
        self._rows = rows
        self._fields[ROWS], self._fields[COLS] = rows, cols
        self._fields[PART] = cols

    def point(self, field: int, tensor: torch.Tensor | None) -> None:
        """Tell where a tensor lies; the caller keeps it there."""
        if tensor is not None:
            self._fields[field] = tensor.data_ptr()

    def put(self, field: int, number: int) -> None:
        self._fields[field] = number

    def put_real(self, number: float) -> None:
        self._reals[REAL] = number

    def begin(self, num_threads: int) -> None:
        """All rows are there to be taken."""
        self._fields[NEXT] = 0
        share = self._rows // (num_threads * _SHARES) + 1
        is_in_parts = self._fields[PART] < self._fields[COLS]
        self._fields[SHARE] = min(share, _ROWS_IN_PARTS) if is_in_parts else share
