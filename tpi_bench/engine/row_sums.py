"""Sums of a row of weights times one vector, and times two: what products are made of.

A row of weights comes from memory once, some lines ahead, for the first vector or two; for others
it is in a cache, and what is asked for ahead, if anything, is what comes after all of them. Two
vectors share what weights are loaded and converted for, and each is summed in the order in which it
is alone, so that its bits are the same. `kernels.py` calls all of it, for long rows with a part of
their columns at a time: what lies between a row's begin and that of the next, its pitch, is then
more than what is summed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tpi_bench.engine.digits import BLOCK_BYTES, BLOCK_GROUPS, dot_block
from tpi_bench.engine.vectors import (
    add,
    fma,
    has_avx512,
    is_amd_zen,
    keep_last,
    load,
    load_4_scales,
    load_float,
    load_scale,
    multiply,
    prefetch,
    quarter_0,
    quarter_1,
    quarter_2,
    quarter_3,
    store_one,
    total,
    zeros,
)

# Bytes: what memory takes to answer, at its full rate. Each is what was fastest on one CPU, a
# Sapphire Rapids. 3072 for halves made a Zen 4 read 18 GB/s of bfloat16 with one thread, 1024 25.
AHEAD_OF_FLOATS, AHEAD_OF_NUMBERS = 3072, 6144
AHEAD_OF_HALVES = 1024 if is_amd_zen() else 3072
HAS_32_REGISTERS = has_avx512()
_LINE = 64

helper = njit(error_model="numpy", forceinline=True)


@helper
def _fetch(address: int, num_bytes: int) -> None:
    for line in range(0, num_bytes, _LINE):
        prefetch(address + line)


@helper
def ahead_of_floats(size: int) -> int:
    return AHEAD_OF_FLOATS if size == 4 else AHEAD_OF_HALVES


@helper
def ahead_in(row_bytes: int, part_bytes: int, usual: int) -> int:
    """How far ahead weights are asked for: in parts of rows, as far as some rows further."""
    if part_bytes < row_bytes:
        return (1 + AHEAD_OF_NUMBERS // part_bytes) * row_bytes
    return usual


@helper
def put(place: int, value: Any, is_first: bool) -> None:
    """Store the sum of a row's first part, or add that of another one."""
    store_one(place, value if is_first else load_float(place) + value)


@helper
def _with_rest(row: int, x: int, cols: int, kind: Any, size: int, sums: Any) -> Any:
    """And the last 16 of a row again, less those that are counted."""
    rest = keep_last(load(x + (cols - 16) * 4, np.float32), cols & 15)
    return fma(load(row + (cols - 16) * size, kind), rest, sums)


@helper
def float_row(row: int, x: int, cols: int, kind: Any, size: int, ahead: int) -> Any:
    """The sum of a row of values of type `kind`, `size` bytes each; it has at least 16."""
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    whole = cols & ~63
    for col in range(0, whole, 64):
        w, v = row + col * size, x + col * 4
        _fetch(w + ahead, 64 * size)
        a = fma(load(w, kind), load(v, np.float32), a)
        b = fma(load(w + 16 * size, kind), load(v + 64, np.float32), b)
        c = fma(load(w + 32 * size, kind), load(v + 128, np.float32), c)
        d = fma(load(w + 48 * size, kind), load(v + 192, np.float32), d)
    for col in range(whole, cols & ~15, 16):
        a = fma(load(row + col * size, kind), load(x + col * 4, np.float32), a)
    if cols & 15:
        b = _with_rest(row, x, cols, kind, size, b)
    return add(add(a, b), add(c, d))


@helper
def _q8_group(numbers: int, x: int) -> Any:
    low = multiply(load(numbers, np.int8), load(x, np.float32))
    return fma(load(numbers + 16, np.int8), load(x + 64, np.float32), low)


@helper
def q8_row(row: int, scales: int, x: int, groups: int, ahead: int) -> Any:
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    whole = groups & ~3
    for group in range(0, whole, 4):
        w, v = row + 32 * group, x + 128 * group
        _fetch(w + ahead, 128)
        four = load_4_scales(scales + 2 * group)
        a = fma(_q8_group(w, v), quarter_0(four), a)
        b = fma(_q8_group(w + 32, v + 128), quarter_1(four), b)
        c = fma(_q8_group(w + 64, v + 256), quarter_2(four), c)
        d = fma(_q8_group(w + 96, v + 384), quarter_3(four), d)
    # Without this the rest is waited for: a row of 576 columns took nearly twice the time.
    _fetch(row + 32 * whole + ahead, 32 * (groups - whole))
    for group in range(whole, groups):
        a = fma(_q8_group(row + 32 * group, x + 128 * group), load_scale(scales + 2 * group), a)
    return add(add(a, b), add(c, d))


@helper
def q4_row(
    row: int, scales: int, digits: int, begin: int, end: int, groups: int, ahead: int
) -> Any:
    """The sum of these groups of a row; `digits` are of the first of them."""
    sums = zeros()
    for start in range(begin, end, BLOCK_GROUPS):
        group = min(start, groups - BLOCK_GROUPS)
        w = row + 16 * group
        _fetch(w + ahead, 64)
        sums = fma(dot_block(w, digits), load_4_scales(scales + 2 * group), sums)
        digits += BLOCK_BYTES
    return total(sums)


@helper
def q4_two_rows(
    row: int, scales: int, digits: int, begin: int, end: int, groups: int, ahead: int
) -> tuple[Any, Any]:
    """A row and the next: digits, of which there are more bytes than weights, are loaded once."""
    sums, others = zeros(), zeros()
    pitch, scale_pitch = 16 * groups, 2 * groups
    for start in range(begin, end, BLOCK_GROUPS):
        group = min(start, groups - BLOCK_GROUPS)
        w, s = row + 16 * group, scales + 2 * group
        _fetch(w + ahead, 64)
        _fetch(w + pitch + ahead, 64)
        sums = fma(dot_block(w, digits), load_4_scales(s), sums)
        others = fma(dot_block(w + pitch, digits), load_4_scales(s + scale_pitch), others)
        digits += BLOCK_BYTES
    return total(sums), total(others)


@helper
def two_of_floats(
    row: int, x: int, cols: int, kind: Any, size: int, ahead: int, far: int
) -> tuple[Any, Any]:
    """The sums of a row of weights times two vectors; the second lies `far` bytes behind the first.

    The compiler loads a weight once that stands here twice.
    """
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    e, f, g, h = zeros(), zeros(), zeros(), zeros()
    whole, y = cols & ~63, x + far
    for col in range(0, whole, 64):
        w, at = row + col * size, col * 4
        if ahead:
            _fetch(w + ahead, 64 * size)
        a = fma(load(w, kind), load(x + at, np.float32), a)
        e = fma(load(w, kind), load(y + at, np.float32), e)
        b = fma(load(w + 16 * size, kind), load(x + at + 64, np.float32), b)
        f = fma(load(w + 16 * size, kind), load(y + at + 64, np.float32), f)
        c = fma(load(w + 32 * size, kind), load(x + at + 128, np.float32), c)
        g = fma(load(w + 32 * size, kind), load(y + at + 128, np.float32), g)
        d = fma(load(w + 48 * size, kind), load(x + at + 192, np.float32), d)
        h = fma(load(w + 48 * size, kind), load(y + at + 192, np.float32), h)
    for col in range(whole, cols & ~15, 16):
        a = fma(load(row + col * size, kind), load(x + col * 4, np.float32), a)
        e = fma(load(row + col * size, kind), load(y + col * 4, np.float32), e)
    if cols & 15:
        b = _with_rest(row, x, cols, kind, size, b)
        f = _with_rest(row, y, cols, kind, size, f)
    return total(add(add(a, b), add(c, d))), total(add(add(e, f), add(g, h)))


@helper
def four_of_floats(
    row: int, x: int, cols: int, kind: Any, size: int, ahead: int, far: int, wide: int
) -> tuple[Any, Any, Any, Any]:
    """A row of weights and another one, `wide` bytes behind it, times two vectors: each vector is
    loaded once for both rows. Sixteen sums take more registers than AVX2 and NEON have.
    """
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    e, f, g, h = zeros(), zeros(), zeros(), zeros()
    i, j, k, m = zeros(), zeros(), zeros(), zeros()
    p, q, r, s = zeros(), zeros(), zeros(), zeros()
    whole, y, other = cols & ~63, x + far, row + wide
    for col in range(0, whole, 64):
        w, u, at = row + col * size, other + col * size, col * 4
        if ahead:
            _fetch(w + ahead, 64 * size)
            _fetch(u + ahead, 64 * size)
        a = fma(load(w, kind), load(x + at, np.float32), a)
        e = fma(load(w, kind), load(y + at, np.float32), e)
        i = fma(load(u, kind), load(x + at, np.float32), i)
        p = fma(load(u, kind), load(y + at, np.float32), p)
        w, u, at = w + 16 * size, u + 16 * size, at + 64
        b = fma(load(w, kind), load(x + at, np.float32), b)
        f = fma(load(w, kind), load(y + at, np.float32), f)
        j = fma(load(u, kind), load(x + at, np.float32), j)
        q = fma(load(u, kind), load(y + at, np.float32), q)
        w, u, at = w + 16 * size, u + 16 * size, at + 64
        c = fma(load(w, kind), load(x + at, np.float32), c)
        g = fma(load(w, kind), load(y + at, np.float32), g)
        k = fma(load(u, kind), load(x + at, np.float32), k)
        r = fma(load(u, kind), load(y + at, np.float32), r)
        w, u, at = w + 16 * size, u + 16 * size, at + 64
        d = fma(load(w, kind), load(x + at, np.float32), d)
        h = fma(load(w, kind), load(y + at, np.float32), h)
        m = fma(load(u, kind), load(x + at, np.float32), m)
        s = fma(load(u, kind), load(y + at, np.float32), s)
    for col in range(whole, cols & ~15, 16):
        w, u, at = row + col * size, other + col * size, col * 4
        a = fma(load(w, kind), load(x + at, np.float32), a)
        e = fma(load(w, kind), load(y + at, np.float32), e)
        i = fma(load(u, kind), load(x + at, np.float32), i)
        p = fma(load(u, kind), load(y + at, np.float32), p)
    if cols & 15:
        b = _with_rest(row, x, cols, kind, size, b)
        f = _with_rest(row, y, cols, kind, size, f)
        j = _with_rest(other, x, cols, kind, size, j)
        q = _with_rest(other, y, cols, kind, size, q)
    return (
        total(add(add(a, b), add(c, d))),
        total(add(add(i, j), add(k, m))),
        total(add(add(e, f), add(g, h))),
        total(add(add(p, q), add(r, s))),
    )


@helper
def two_of_q8(row: int, scales: int, x: int, groups: int, ahead: int, far: int) -> tuple[Any, Any]:
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    e, f, g, h = zeros(), zeros(), zeros(), zeros()
    whole = groups & ~3
    for group in range(0, whole, 4):
        w, v = row + 32 * group, x + 128 * group
        _fetch(w + ahead, 128)
        four = load_4_scales(scales + 2 * group)
        a = fma(_q8_group(w, v), quarter_0(four), a)
        e = fma(_q8_group(w, v + far), quarter_0(four), e)
        b = fma(_q8_group(w + 32, v + 128), quarter_1(four), b)
        f = fma(_q8_group(w + 32, v + far + 128), quarter_1(four), f)
        c = fma(_q8_group(w + 64, v + 256), quarter_2(four), c)
        g = fma(_q8_group(w + 64, v + far + 256), quarter_2(four), g)
        d = fma(_q8_group(w + 96, v + 384), quarter_3(four), d)
        h = fma(_q8_group(w + 96, v + far + 384), quarter_3(four), h)
    _fetch(row + 32 * whole + ahead, 32 * (groups - whole))
    for group in range(whole, groups):
        w, v, scale = row + 32 * group, x + 128 * group, load_scale(scales + 2 * group)
        a = fma(_q8_group(w, v), scale, a)
        e = fma(_q8_group(w, v + far), scale, e)
    return total(add(add(a, b), add(c, d))), total(add(add(e, f), add(g, h)))


@helper
def two_of_q4(
    row: int, scales: int, digits: int, begin: int, end: int, groups: int, ahead: int, far: int
) -> tuple[Any, Any, Any, Any]:
    """A row of weights and the next times two vectors, whose digits lie `far` bytes apart."""
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    wide, scale_wide = 16 * groups, 2 * groups
    for start in range(begin, end, BLOCK_GROUPS):
        group = min(start, groups - BLOCK_GROUPS)
        w, s = row + 16 * group, scales + 2 * group
        _fetch(w + ahead, 64)
        _fetch(w + wide + ahead, 64)
        four, other = load_4_scales(s), load_4_scales(s + scale_wide)
        a = fma(dot_block(w, digits), four, a)
        b = fma(dot_block(w + wide, digits), other, b)
        c = fma(dot_block(w, digits + far), four, c)
        d = fma(dot_block(w + wide, digits + far), other, d)
        digits += BLOCK_BYTES
    return total(a), total(b), total(c), total(d)
