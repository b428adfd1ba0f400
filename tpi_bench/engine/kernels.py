"""Matrix times one vector or a few, with weights in every precision, in float32: numba kernels.

Each reads its weights once, in order, and asks for them ahead, so that memory is what it waits for
(`row_sums.py`). A row is summed in a fixed order, whatever thread has it and however many vectors
there are. `compiled.py` compiles them, `matrix.py` and `tiles.py` run them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tpi_bench.engine.digits import BLOCK_BYTES, BLOCK_GROUPS, split
from tpi_bench.engine.fields import field, take
from tpi_bench.engine.row_sums import (
    AHEAD_OF_NUMBERS,
    HAS_32_REGISTERS,
    ahead_in,
    ahead_of_floats,
    float_row,
    four_of_floats,
    helper,
    put,
    q4_row,
    q4_two_rows,
    q8_row,
    two_of_floats,
    two_of_q4,
    two_of_q8,
)
from tpi_bench.engine.task import (
    COLS,
    DIGITS,
    NEXT,
    NUM_NEW,
    OUT,
    PART,
    ROWS,
    SCALES,
    SHARE,
    VALUES,
    X,
)
from tpi_bench.engine.vectors import (
    load,
    load_high,
    load_low,
    load_scale,
    multiply,
    store,
    store_as,
    total,
)

_GROUP_ROWS = 8  # that stay in the second cache, while two vectors at a time stay in the first
_MOST_COLS_OF_TWO = 4096


@helper
def _group_times_two(
    w: int,
    x: int,
    out: int,
    shape: tuple[int, int, int, int, int],
    kind: Any,
    size: int,
    ahead: int,
    is_first: bool,
) -> None:
    """Rows times two vectors. `shape`: rows, columns, and bytes from a row to the next, from a
    vector to the next, and from its results to those of the next.
    """
    count, cols, wide, far, pitch = shape
    row = 0
    while HAS_32_REGISTERS and row + 1 < count:
        at, to = w + wide * row, out + 4 * row
        a, b, c, d = four_of_floats(at, x, cols, kind, size, ahead, far, wide)
        put(to, a, is_first)
        put(to + 4, b, is_first)
        put(to + pitch, c, is_first)
        put(to + pitch + 4, d, is_first)
        row += 2
    while row < count:
        at, to = w + wide * row, out + 4 * row
        a, b = two_of_floats(at, x, cols, kind, size, ahead, far)
        put(to, a, is_first)
        put(to + pitch, b, is_first)
        row += 1


@helper
def _float_product(task: Any, kind: Any, size: int) -> None:
    """A group of rows after another: times the first vector from memory, then times the others,
    two at a time, from a cache. Of an even number the last vector goes with the first.
    """
    rows, cols = field(task, ROWS), field(task, COLS)
    values, x, out = field(task, VALUES), field(task, X), field(task, OUT)
    num_new, pitch, far, wide = field(task, NUM_NEW), 4 * rows, 4 * cols, cols * size
    share, part = field(task, SHARE), field(task, PART)
    ahead = ahead_in(wide, part * size, ahead_of_floats(size))
    first = take(task, NEXT, share)
    while first < rows:
        for begin in range(0, cols, part):
            num_cols, is_first = min(part, cols - begin), begin == 0
            for start in range(first, min(first + share, rows), _GROUP_ROWS):
                count = min(_GROUP_ROWS, min(first + share, rows) - start)
                w, v, place = values + start * wide + begin * size, x + 4 * begin, out + 4 * start
                for row in range(count):
                    at, to = w + wide * row, place + 4 * row
                    put(to, total(float_row(at, v, num_cols, kind, size, ahead)), is_first)
                    if num_new & 1 == 0:
                        other, to = v + far * (num_new - 1), to + pitch * (num_new - 1)
                        put(to, total(float_row(at, other, num_cols, kind, size, ahead)), is_first)
                ahead_of_group = _GROUP_ROWS * wide
                for number in range(1, num_new - 1, 2):
                    x_pair, to = v + far * number, place + pitch * number
                    shape = count, num_cols, wide, far, pitch
                    _group_times_two(w, x_pair, to, shape, kind, size, ahead_of_group, is_first)
                    ahead_of_group = 0  # it is on its way
        first = take(task, NEXT, share)


def float32(task: Any) -> None:
    """x (NUM_NEW, i) in float32 times values (o, i) -> out (NUM_NEW, o) in float32. So are all."""
    _float_product(task, np.float32, 4)


def float16(task: Any) -> None:
    _float_product(task, np.float16, 2)


def bfloat16(task: Any) -> None:
    _float_product(task, np.uint16, 2)


def q8(task: Any) -> None:
    rows, cols = field(task, ROWS), field(task, COLS)
    values, scales = field(task, VALUES), field(task, SCALES)
    x, out = field(task, X), field(task, OUT)
    num_new, pitch, far = field(task, NUM_NEW), 4 * rows, 4 * cols
    share, part = field(task, SHARE), field(task, PART)
    ahead = ahead_in(cols, part, AHEAD_OF_NUMBERS)
    first = take(task, NEXT, share)
    while first < rows:
        for begin in range(0, cols, part):
            num_cols = min(part, cols - begin)
            groups = num_cols >> 5
            for row in range(first, min(first + share, rows)):
                at = row * cols + begin
                w, s = values + at, scales + (at >> 4)
                v, place = x + 4 * begin, out + 4 * row
                left = num_new
                while left:
                    # Two at once from memory, unless they do not fit into the first cache together.
                    is_alone = left & 1 or num_cols > _MOST_COLS_OF_TWO
                    if left == 1 or (left == num_new and is_alone):
                        put(place, total(q8_row(w, s, v, groups, ahead)), begin == 0)
                        count = 1
                    else:
                        one, other = two_of_q8(w, s, v, groups, ahead, far)
                        put(place, one, begin == 0)
                        put(place + pitch, other, begin == 0)
                        count = 2
                    left -= count
                    v += far * count
                    place += pitch * count
        first = take(task, NEXT, share)


@helper
def _digits_pitch(groups: int) -> int:
    """Bytes from the digits of a vector to those of the next."""
    return (groups + BLOCK_GROUPS - 1) // BLOCK_GROUPS * BLOCK_BYTES


def split_x(task: Any) -> None:
    """x (NUM_NEW, i) -> the digits of each, one after another; by one thread."""
    groups = field(task, COLS) >> 5
    x, digits = field(task, X), field(task, DIGITS)
    for number in range(field(task, NUM_NEW)):
        split(x + 128 * groups * number, groups, digits + _digits_pitch(groups) * number)


def q4(task: Any) -> None:
    rows, cols = field(task, ROWS), field(task, COLS)
    values, scales = field(task, VALUES), field(task, SCALES)
    out, num_new, pitch = field(task, OUT), field(task, NUM_NEW), 4 * rows
    share, part = field(task, SHARE), field(task, PART)
    ahead = ahead_in(cols >> 1, part >> 1, AHEAD_OF_NUMBERS)
    groups, groups_of_part = cols >> 5, part >> 5
    far = _digits_pitch(groups)
    first = take(task, NEXT, share)
    while first < rows:
        last = min(first + share, rows)
        for begin in range(0, groups, groups_of_part):
            end, is_first = min(begin + groups_of_part, groups), begin == 0
            row = first
            while row < last:
                w, s, place = values + 16 * groups * row, scales + 2 * groups * row, out + 4 * row
                digits = field(task, DIGITS) + begin // BLOCK_GROUPS * BLOCK_BYTES
                if row + 1 < last:
                    for _ in range(num_new >> 1):
                        a, b, c, d = two_of_q4(w, s, digits, begin, end, groups, ahead, far)
                        put(place, a, is_first)
                        put(place + 4, b, is_first)
                        put(place + pitch, c, is_first)
                        put(place + pitch + 4, d, is_first)
                        digits += 2 * far
                        place += 2 * pitch
                    if num_new & 1:
                        a, b = q4_two_rows(w, s, digits, begin, end, groups, ahead)
                        put(place, a, is_first)
                        put(place + 4, b, is_first)
                else:
                    for _ in range(num_new):
                        put(place, q4_row(w, s, digits, begin, end, groups, ahead), is_first)
                        digits += far
                        place += pitch
                row += 2
        first = take(task, NEXT, share)


@helper
def _widen_floats(task: Any, kind: Any, size: int) -> None:
    rows, cols, share = field(task, ROWS), field(task, COLS), field(task, SHARE)
    values, out = field(task, VALUES), field(task, OUT)
    first = take(task, NEXT, share)
    while first < rows:
        count = (min(first + share, rows) - first) * cols
        start = first * cols
        for at in range(start, start + count, 16):
            at = min(at, start + count - 16)  # the last sixteen, some of them twice
            store(out + 4 * at, load(values + size * at, kind))
        first = take(task, NEXT, share)


def float16_to_float32(task: Any) -> None:
    """values (o, i) of a type -> out (o, i) in another. So are the others, by torch's names."""
    _widen_floats(task, np.float16, 2)


def bfloat16_to_float32(task: Any) -> None:
    _widen_floats(task, np.uint16, 2)


@helper
def _widen_q8(task: Any, kind: Any, size: int) -> None:
    rows, groups, share = field(task, ROWS), field(task, COLS) >> 5, field(task, SHARE)
    values, scales, out = field(task, VALUES), field(task, SCALES), field(task, OUT)
    first = take(task, NEXT, share)
    while first < rows:
        for group in range(first * groups, min(first + share, rows) * groups):
            w, v = values + 32 * group, out + 32 * size * group
            scale = load_scale(scales + 2 * group)
            store_as(v, multiply(load(w, np.int8), scale), kind)
            store_as(v + 16 * size, multiply(load(w + 16, np.int8), scale), kind)
        first = take(task, NEXT, share)


@helper
def _widen_q4(task: Any, kind: Any, size: int) -> None:
    rows, groups, share = field(task, ROWS), field(task, COLS) >> 5, field(task, SHARE)
    values, scales, out = field(task, VALUES), field(task, SCALES), field(task, OUT)
    first = take(task, NEXT, share)
    while first < rows:
        for group in range(first * groups, min(first + share, rows) * groups):
            w, v = values + 16 * group, out + 32 * size * group
            scale = load_scale(scales + 2 * group)
            store_as(v, multiply(load_low(w), scale), kind)
            store_as(v + 16 * size, multiply(load_high(w), scale), kind)
        first = take(task, NEXT, share)


def int8_to_float32(task: Any) -> None:
    _widen_q8(task, np.float32, 4)


def int8_to_bfloat16(task: Any) -> None:
    _widen_q8(task, np.uint16, 2)


def uint8_to_float32(task: Any) -> None:
    _widen_q4(task, np.float32, 4)


def uint8_to_bfloat16(task: Any) -> None:
    _widen_q4(task, np.uint16, 2)


PRODUCTS = (float32, float16, bfloat16, q8, split_x, q4)
WIDENING = (
    float16_to_float32,
    bfloat16_to_float32,
    int8_to_float32,
    int8_to_bfloat16,
    uint8_to_float32,
    uint8_to_bfloat16,
)
