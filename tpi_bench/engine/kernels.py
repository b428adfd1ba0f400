"""Matrix times one vector, with weights in every precision, in float32: numba kernels.

Each reads its weights once, in order, some lines ahead, so that memory is what it waits for. A row
is summed in a fixed order, whatever thread has it. `compiled.py` compiles them, `matrix.py` and
`tiles.py` run them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tpi_bench.engine.digits import BLOCK_BYTES, BLOCK_GROUPS, dot_block, split
from tpi_bench.engine.fields import field, take
from tpi_bench.engine.task import COLS, DIGITS, NEXT, OUT, ROWS, SCALES, SHARE, VALUES, X
from tpi_bench.engine.vectors import (
    add,
    fma,
    keep_last,
    load,
    load_4_scales,
    load_high,
    load_low,
    load_scale,
    multiply,
    prefetch,
    quarter_0,
    quarter_1,
    quarter_2,
    quarter_3,
    store,
    store_as,
    store_one,
    total,
    zeros,
)

# Bytes: what memory takes to answer, at its full rate. Each is what was fastest on one CPU.
_AHEAD_OF_FLOATS, _AHEAD_OF_NUMBERS = 3072, 6144
_LINE = 64

helper = njit(error_model="numpy", forceinline=True)


@helper
def _fetch(address: int, num_bytes: int) -> None:
    for line in range(0, num_bytes, _LINE):
        prefetch(address + line)


@helper
def _float_row(row: int, x: int, cols: int, kind: Any, size: int) -> Any:
    """The sum of a row of values of type `kind`, `size` bytes each, at least 16 of them."""
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    whole = cols & ~63
    for col in range(0, whole, 64):
        w, v = row + col * size, x + col * 4
        _fetch(w + _AHEAD_OF_FLOATS, 64 * size)
        a = fma(load(w, kind), load(v, np.float32), a)
        b = fma(load(w + 16 * size, kind), load(v + 64, np.float32), b)
        c = fma(load(w + 32 * size, kind), load(v + 128, np.float32), c)
        d = fma(load(w + 48 * size, kind), load(v + 192, np.float32), d)
    for col in range(whole, cols & ~15, 16):
        a = fma(load(row + col * size, kind), load(x + col * 4, np.float32), a)
    if cols & 15:  # the last 16 again, less those that are counted
        rest = keep_last(load(x + (cols - 16) * 4, np.float32), cols & 15)
        b = fma(load(row + (cols - 16) * size, kind), rest, b)
    return add(add(a, b), add(c, d))


@helper
def _q8_group(numbers: int, x: int) -> Any:
    low = multiply(load(numbers, np.int8), load(x, np.float32))
    return fma(load(numbers + 16, np.int8), load(x + 64, np.float32), low)


@helper
def _q8_row(row: int, scales: int, x: int, groups: int) -> Any:
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    whole = groups & ~3
    for group in range(0, whole, 4):
        w, v = row + 32 * group, x + 128 * group
        _fetch(w + _AHEAD_OF_NUMBERS, 128)
        four = load_4_scales(scales + 2 * group)
        a = fma(_q8_group(w, v), quarter_0(four), a)
        b = fma(_q8_group(w + 32, v + 128), quarter_1(four), b)
        c = fma(_q8_group(w + 64, v + 256), quarter_2(four), c)
        d = fma(_q8_group(w + 96, v + 384), quarter_3(four), d)
    for group in range(whole, groups):
        a = fma(_q8_group(row + 32 * group, x + 128 * group), load_scale(scales + 2 * group), a)
    return add(add(a, b), add(c, d))


@helper
def _q4_row(row: int, scales: int, digits: int, groups: int, out: int) -> None:
    sums = zeros()
    for start in range(0, groups, BLOCK_GROUPS):
        group = min(start, groups - BLOCK_GROUPS)
        w = row + 16 * group
        _fetch(w + _AHEAD_OF_NUMBERS, 64)
        sums = fma(dot_block(w, digits), load_4_scales(scales + 2 * group), sums)
        digits += BLOCK_BYTES
    store_one(out, total(sums))


@helper
def _q4_two_rows(row: int, scales: int, digits: int, groups: int, out: int) -> None:
    """A row and the next: digits, of which there are more bytes than weights, are loaded once."""
    sums, others = zeros(), zeros()
    pitch, scale_pitch = 16 * groups, 2 * groups
    for start in range(0, groups, BLOCK_GROUPS):
        group = min(start, groups - BLOCK_GROUPS)
        w, s = row + 16 * group, scales + 2 * group
        _fetch(w + _AHEAD_OF_NUMBERS, 64)
        _fetch(w + pitch + _AHEAD_OF_NUMBERS, 64)
        sums = fma(dot_block(w, digits), load_4_scales(s), sums)
        others = fma(dot_block(w + pitch, digits), load_4_scales(s + scale_pitch), others)
        digits += BLOCK_BYTES
    store_one(out, total(sums))
    store_one(out + 4, total(others))


@helper
def _float_product(task: Any, kind: Any, size: int) -> None:
    rows, cols, share = field(task, ROWS), field(task, COLS), field(task, SHARE)
    values, x, out = field(task, VALUES), field(task, X), field(task, OUT)
    first = take(task, NEXT, share)
    while first < rows:
        for row in range(first, min(first + share, rows)):
            sums = _float_row(values + row * cols * size, x, cols, kind, size)
            store_one(out + 4 * row, total(sums))
        first = take(task, NEXT, share)


def float32(task: Any) -> None:
    """x (i,) in float32 times values (o, i) -> out (o,) in float32. So are the others."""
    _float_product(task, np.float32, 4)


def float16(task: Any) -> None:
    _float_product(task, np.float16, 2)


def bfloat16(task: Any) -> None:
    _float_product(task, np.uint16, 2)


def q8(task: Any) -> None:
    rows, groups, share = field(task, ROWS), field(task, COLS) >> 5, field(task, SHARE)
    values, scales = field(task, VALUES), field(task, SCALES)
    x, out = field(task, X), field(task, OUT)
    first = take(task, NEXT, share)
    while first < rows:
        for row in range(first, min(first + share, rows)):
            sums = _q8_row(values + 32 * groups * row, scales + 2 * groups * row, x, groups)
            store_one(out + 4 * row, total(sums))
        first = take(task, NEXT, share)


def split_x(task: Any) -> None:
    """x (i,) -> its digits, which q4 multiplies with; by one thread."""
    split(field(task, X), field(task, COLS) >> 5, field(task, DIGITS))


def q4(task: Any) -> None:
    rows, groups, share = field(task, ROWS), field(task, COLS) >> 5, field(task, SHARE)
    values, scales = field(task, VALUES), field(task, SCALES)
    digits, out = field(task, DIGITS), field(task, OUT)
    first = take(task, NEXT, share)
    while first < rows:
        end = min(first + share, rows)
        row = first
        while row < end:
            w, s, place = values + 16 * groups * row, scales + 2 * groups * row, out + 4 * row
            if row + 1 < end:
                _q4_two_rows(w, s, digits, groups, place)
            else:
                _q4_row(w, s, digits, groups, place)
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
