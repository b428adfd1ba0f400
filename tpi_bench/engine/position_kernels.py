"""What a position of a decoder takes besides products with weights: numba kernels.

`one_position.py` and `attention.py` run them, for one position or a few; each gets the same bits
alone and with others. All compute in float32 and add in a fixed order; the KV cache is read and
written in its own type.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir

from tpi_bench.engine.fields import field, real_field, take
from tpi_bench.engine.row_sums import helper
from tpi_bench.engine.task import (
    COLS,
    COS,
    HEAD_TO_KV,
    KEYS,
    KV_HEADS,
    NEXT,
    NUM_NEW,
    OUT,
    PITCH,
    POSITION,
    REAL,
    ROWS,
    SCRATCH,
    SHARE,
    SIN,
    STRIDE,
    VALUES,
    X,
)
from tpi_bench.engine.vectors import (
    FLOATS,
    INTS,
    LANES,
    add,
    call_llvm,
    divide,
    floats,
    fma,
    highest,
    int_lanes,
    load,
    load_float,
    load_index,
    maximum,
    multiply,
    operation,
    splat,
    store,
    store_as,
    store_one,
    total,
    zeros,
)

_ONE, _LOWEST = np.float32(1), np.float32(-1e30)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(FLOATS, [float(np.float32(value))] * LANES)


@operation(floats, floats)
def exponential(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e to the power of each lane, to 2 units in the last place, kept above 2**-126.

    A power of two times e**rest, rest within ln(2) / 2 of 0, by the polynomial of Cephes' `expf`.
    """

    def fused(left: ir.Value, right: ir.Value, addend: ir.Value) -> ir.Value:
        return call_llvm(b, "llvm.fmuladd.v16f32", FLOATS, left, right, addend)

    x = call_llvm(b, "llvm.maximum.v16f32", FLOATS, x, _constant(-87.3))
    x = call_llvm(b, "llvm.minimum.v16f32", FLOATS, x, _constant(88.3))
    power = call_llvm(b, "llvm.rint.v16f32", FLOATS, b.fmul(x, _constant(math.log2(math.e))))
    # ln(2) in two parts: the first, times a small whole number, is exact.
    rest = fused(power, _constant(2.12194440e-4), fused(power, _constant(-0.693359375), x))
    value = _constant(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
        value = fused(value, rest, _constant(factor))
    value = fused(b.fmul(value, rest), rest, b.fadd(rest, _constant(1.0)))
    bits = b.shl(b.add(b.fptosi(power, INTS), int_lanes(127)), int_lanes(23))
    return b.fmul(value, b.bitcast(bits, FLOATS))


@helper
def _norm_row(x: int, weight: int, out: int, cols: int, epsilon: Any) -> None:
    a, b = zeros(), zeros()
    for at in range(0, 4 * (cols & ~31), 128):
        low, high = load(x + at, np.float32), load(x + at + 64, np.float32)
        a, b = fma(low, low, a), fma(high, high, b)
    if cols & 16:
        last = load(x + 4 * (cols - 16), np.float32)
        a = fma(last, last, a)
    mean = total(add(a, b)) / np.float32(cols)
    scale = splat(_ONE / np.float32(math.sqrt(mean + epsilon)))
    for at in range(0, 4 * cols, 64):
        normed = multiply(load(x + at, np.float32), scale)
        store(out + at, multiply(normed, load(weight + at, np.float32)))


def rms_norm(task: Any) -> None:
    """x (NUM_NEW, h), weight (h,) at VALUES and epsilon in REAL -> out (NUM_NEW, h); h in whole
    vectors.
    """
    cols, weight, epsilon = field(task, COLS), field(task, VALUES), real_field(task, REAL)
    for row in range(0, 4 * cols * field(task, NUM_NEW), 4 * cols):
        _norm_row(field(task, X) + row, weight, field(task, OUT) + row, cols, epsilon)


def gate(task: Any) -> None:
    """gate and up (NUM_NEW, 2 c) -> silu(gate) * up (NUM_NEW, c); c in whole vectors."""
    cols, x, out = field(task, COLS), field(task, X), field(task, OUT)
    for _ in range(field(task, NUM_NEW)):
        for at in range(0, 4 * cols, 64):
            value, up = load(x + at, np.float32), load(x + 4 * cols + at, np.float32)
            below = add(splat(_ONE), exponential(multiply(value, splat(-_ONE))))
            store(out + at, multiply(divide(value, below), up))
        x += 8 * cols
        out += 4 * cols


@helper
def _turn(task: Any, new: int, head: int, out: int, kind: Any, size: int) -> None:
    """Rotary embedding of a float32 head (d,) at the new position of that number -> `out`, of type
    `kind`.

    The last vector of a half is done in part twice where d / 2 is no whole number of them.
    """
    half, place = field(task, COLS) >> 1, 4 * new * field(task, COLS)
    cos, sin = field(task, COS) + place, field(task, SIN) + place
    for start in range(0, half, 16):
        for low in (0, half):
            here = low + min(start, half - 16)
            other = here + half - 2 * low
            straight = multiply(load(head + 4 * here, np.float32), load(cos + 4 * here, np.float32))
            turned = load(head + 4 * other, np.float32)
            store_as(
                out + size * here, fma(turned, load(sin + 4 * here, np.float32), straight), kind
            )


@helper
def _dot(query: int, key: int, cols: int, kind: Any, size: int) -> Any:
    sums = zeros()
    for at in range(0, cols, 16):
        sums = fma(load(query + 4 * at, np.float32), load(key + size * at, kind), sums)
    return total(sums)


@helper
def _shares(scores: int, count: int) -> Any:
    """Scores -> their exponentials, less the highest; returns the sum. Both in whole vectors."""
    top = splat(_LOWEST)
    for at in range(0, 4 * count, 64):
        top = maximum(top, load(scores + at, np.float32))
    top, sums = splat(-highest(top)), zeros()
    for at in range(0, 4 * count, 64):
        share = exponential(add(load(scores + at, np.float32), top))
        store(scores + at, share)
        sums = add(sums, share)
    return total(sums)


@helper
def _mix(shares: int, values: int, count: int, cols: int, at: int, kind: Any, size: int) -> Any:
    """Sixteen columns from `at` on of the sum of `count` values (d,), each times its share."""
    a, b, row = zeros(), zeros(), size * cols
    here = values + size * at
    for n in range(0, count - 1, 2):
        a = fma(splat(load_float(shares + 4 * n)), load(here, kind), a)
        b = fma(splat(load_float(shares + 4 * n + 4)), load(here + row, kind), b)
        here += 2 * row
    if count & 1:
        a = fma(splat(load_float(shares + 4 * count - 4)), load(here, kind), a)
    return add(a, b)


@helper
def _mix_64(shares: int, values: int, count: int, cols: int, at: int, kind: Any, size: int) -> Any:
    """The same of 64 columns, whose lines are read one after the other: attention with a KV head
    for each of 32 heads of 128 took three quarters of its time with that.
    """
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    e, f, g, h = zeros(), zeros(), zeros(), zeros()
    row, here = size * cols, values + size * at
    for n in range(0, count - 1, 2):
        share, there = splat(load_float(shares + 4 * n)), here + row
        a = fma(share, load(here, kind), a)
        c = fma(share, load(here + 16 * size, kind), c)
        e = fma(share, load(here + 32 * size, kind), e)
        g = fma(share, load(here + 48 * size, kind), g)
        share = splat(load_float(shares + 4 * n + 4))
        b = fma(share, load(there, kind), b)
        d = fma(share, load(there + 16 * size, kind), d)
        f = fma(share, load(there + 32 * size, kind), f)
        h = fma(share, load(there + 48 * size, kind), h)
        here += 2 * row
    if count & 1:
        share = splat(load_float(shares + 4 * count - 4))
        a = fma(share, load(here, kind), a)
        c = fma(share, load(here + 16 * size, kind), c)
        e = fma(share, load(here + 32 * size, kind), e)
        g = fma(share, load(here + 48 * size, kind), g)
    return add(a, b), add(c, d), add(e, f), add(g, h)


@helper
def _row_bytes(task: Any) -> int:
    """Of a new position's queries, keys and values."""
    return 4 * field(task, COLS) * (field(task, ROWS) + 2 * field(task, KV_HEADS))


@helper
def _attend_head(task: Any, new: int, head: int, kind: Any, size: int) -> None:
    """A query head of the new position of that number, over the cache up to it."""
    cols, heads, position = field(task, COLS), field(task, ROWS), field(task, POSITION) + new
    kv_head = load_index(field(task, HEAD_TO_KV) + 8 * head)
    keys = field(task, KEYS) + size * kv_head * field(task, STRIDE)
    values = field(task, VALUES) + size * kv_head * field(task, STRIDE)
    query = field(task, SCRATCH) + field(task, PITCH) * (new * heads + head)
    scores = query + 4 * cols
    x = field(task, X) + new * _row_bytes(task)
    _turn(task, new, x + 4 * cols * head, query, np.float32, 4)
    count, scale = position + 1, real_field(task, REAL)
    for n in range(count):
        store_one(scores + 4 * n, scale * _dot(query, keys + size * cols * n, cols, kind, size))
    whole = (count + 15) & ~15
    for n in range(count, whole):
        store_one(scores + 4 * n, _LOWEST)
    share = splat(_ONE / _shares(scores, whole))
    out = field(task, OUT) + 4 * cols * (new * heads + head)
    whole = cols & ~63
    for at in range(0, whole, 64):
        a, b, c, d = _mix_64(scores, values, count, cols, at, kind, size)
        store(out + 4 * at, multiply(a, share))
        store(out + 4 * at + 64, multiply(b, share))
        store(out + 4 * at + 128, multiply(c, share))
        store(out + 4 * at + 192, multiply(d, share))
    for at in range(whole, cols, 16):
        mixed = _mix(scores, values, count, cols, at, kind, size)
        store(out + 4 * at, multiply(mixed, share))


@helper
def _remember(task: Any, kind: Any, size: int) -> None:
    """The new positions' keys, turned, and values into the cache; by one thread."""
    cols, heads, kv_heads = field(task, COLS), field(task, ROWS), field(task, KV_HEADS)
    for new in range(field(task, NUM_NEW)):
        position = field(task, POSITION) + new
        for kv_head in range(kv_heads):
            place = size * (kv_head * field(task, STRIDE) + position * cols)
            key = field(task, X) + new * _row_bytes(task) + 4 * cols * (heads + kv_head)
            _turn(task, new, key, field(task, KEYS) + place, kind, size)
            value = key + 4 * cols * kv_heads
            for at in range(0, cols, 16):
                rounded = load(value + 4 * at, np.float32)
                store_as(field(task, VALUES) + place + size * at, rounded, kind)


@helper
def _attend(task: Any, kind: Any, size: int) -> None:
    """Threads share the heads; each does its own of all new positions, which read the same keys."""
    rows, share = field(task, ROWS), field(task, SHARE)
    first = take(task, NEXT, share)
    while first < rows:
        for head in range(first, min(first + share, rows)):
            for new in range(field(task, NUM_NEW)):
                _attend_head(task, new, head, kind, size)
        first = take(task, NEXT, share)


def remember_float32(task: Any) -> None:
    """X has a query heads, b keys and b values (d,) of each new position; the caches are at KEYS
    and VALUES, STRIDE values from one KV head to the next. So for the other types.
    """
    _remember(task, np.float32, 4)


def remember_float16(task: Any) -> None:
    _remember(task, np.float16, 2)


def remember_bfloat16(task: Any) -> None:
    _remember(task, np.uint16, 2)


def attend_float32(task: Any) -> None:
    """Query heads at X, each over the cache up to its position, POSITION and on -> mixed heads
    (NUM_NEW, a, d); after `remember`.
    """
    _attend(task, np.float32, 4)


def attend_float16(task: Any) -> None:
    _attend(task, np.float16, 2)


def attend_bfloat16(task: Any) -> None:
    _attend(task, np.uint16, 2)


ONE_POSITION = (
    rms_norm,
    gate,
    remember_float32,
    remember_float16,
    remember_bfloat16,
    attend_float32,
    attend_float16,
    attend_bfloat16,
)
