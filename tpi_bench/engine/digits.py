"""A vector as whole numbers in three signed bytes: how products with 4-bit weights go fast.

To turn every 4-bit number into a float32 takes longer than to read it. CPUs multiply bytes instead,
64 at a time, and add them up exactly (`dot_bytes`). So the vector is converted, once, and not the
weights: each group of 32 values becomes whole numbers times one step, of 24 bits as float32 has
them, and these become three digits to the base 256, -128 to 127 each.

A block is four groups in 512 bytes: for the first, second and last digit, 64 bytes that meet the
low halves of a block of weights and 64 that meet the high halves; then 16 int32, which take away
the 8 that is added to each 4-bit number; then 16 float32, the step of each group four times. Lane
by lane that is how `dot_bytes` adds: four bytes that are neighbours give one int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.extending import intrinsic

from tpi_bench.engine.vectors import (
    FLOATS,
    I8,
    I16,
    I32,
    INTS,
    LANES,
    call_llvm,
    features,
    float32,
    floats,
    int64,
    int_lanes,
    ints,
    join,
    largest,
    load,
    multiply,
    operation,
    read,
    shuffle,
    splat,
    void,
    write,
)

BLOCK_GROUPS = 4
BLOCK_BYTES = 512
_LARGEST = np.float32(127 * 65536)  # three digits hold a little more, so nothing rounds beyond
_NOTHING = np.float32(1e-30)  # groups below it count as zeros: their step would be no number


@operation(ints)
def no_ints(b: ir.IRBuilder) -> ir.Value:
    return int_lanes(0)


@operation(ints, int64)
def load_ints(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return read(b, address, INTS)


@operation(ints, ints, ints)
def add_ints(b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return b.add(left, right)


@operation(ints, ints)
def times_256(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return b.shl(values, int_lanes(8))


@operation(floats, ints)
def to_floats(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return b.sitofp(values, FLOATS)


@operation(ints, floats)
def to_ints(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """Rounded to the nearest."""
    return b.fptosi(call_llvm(b, "llvm.rint.v16f32", FLOATS, values), INTS)


@operation(ints, ints)
def low_halves(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """The low four bits of each byte."""
    return b.and_(values, int_lanes(0x0F0F0F0F))


@operation(ints, ints)
def high_halves(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return b.and_(b.lshr(values, int_lanes(4)), int_lanes(0x0F0F0F0F))


@operation(ints, ints)
def last_digit(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return b.ashr(b.shl(values, int_lanes(24)), int_lanes(24))


@operation(ints, ints)
def other_digits(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    last = b.ashr(b.shl(values, int_lanes(24)), int_lanes(24))
    return b.ashr(b.sub(values, last), int_lanes(8))


@operation(void, int64, ints)
def store_bytes(b: ir.IRBuilder, address: ir.Value, values: ir.Value) -> None:
    """The lowest byte of each lane: 16 bytes."""
    write(b, address, b.trunc(values, ir.VectorType(I8, LANES)))


@operation(void, int64, ints)
def store_offsets(b: ir.IRBuilder, address: ir.Value, values: ir.Value) -> None:
    """-8 times the sum of each four neighbours: 4 int32."""
    quads = [shuffle(b, values, range(first, LANES, 4)) for first in range(4)]
    sums = b.add(b.add(quads[0], quads[1]), b.add(quads[2], quads[3]))
    write(b, address, b.mul(sums, ir.Constant(sums.type, [-8] * 4)))


@operation(void, int64, float32)
def store_step(b: ir.IRBuilder, address: ir.Value, step: ir.Value) -> None:
    one = b.insert_element(ir.Constant(FLOATS, ir.Undefined), step, ir.Constant(I32, 0))
    write(b, address, shuffle(b, one, [0] * 4))


def _dot_bytes(_context: Any, sums: Any, unsigned: Any, signed: Any) -> Any:
    """To each int32 of `sums`, add the products of its four bytes in `unsigned` and `signed`.

    Bytes of `unsigned` are 0 to 15.
    """

    def generate(context: Any, b: ir.IRBuilder, _sig: Any, values: Any) -> ir.Value:
        known = features(context)
        if "avx512vnni" in known:
            return _vnni(b, *values)
        if "avxvnni" in known:
            return _by_parts(b, 8, _vnni, *values)
        if "avx2" in known:
            return _by_parts(b, 8, _avx2, *values)
        if "dotprod" in known:
            return _by_parts(b, 4, _neon, *values)
        return _one_by_one(b, *values)

    return ints(ints, ints, ints), generate


dot_bytes: Any = intrinsic(_dot_bytes)


def _by_parts(b: ir.IRBuilder, lanes: int, dot: Any, *values: ir.Value) -> ir.Value:
    """With registers of so many lanes."""
    parts = []
    for first in range(0, LANES, lanes):
        sums, *words = (shuffle(b, value, range(first, first + lanes)) for value in values)
        parts.append(dot(b, sums, *words))
    while len(parts) > 1:
        parts = [join(b, low, high) for low, high in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _as_bytes(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    return b.bitcast(words, ir.VectorType(I8, 4 * words.type.count))


def _vnni(b: ir.IRBuilder, sums: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * sums.type.count}"
    return call_llvm(b, name, sums.type, sums, _as_bytes(b, unsigned), _as_bytes(b, signed))


def _avx2(b: ir.IRBuilder, sums: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Sums of two products fit 16 bits, as 15 * 128 * 2 does."""
    pairs = ir.VectorType(I16, 16)
    products = (_as_bytes(b, unsigned), _as_bytes(b, signed))
    twos = call_llvm(b, "llvm.x86.avx2.pmadd.ub.sw", pairs, *products)
    ones = ir.Constant(pairs, [1] * 16)
    return b.add(sums, call_llvm(b, "llvm.x86.avx2.pmadd.wd", sums.type, twos, ones))


def _neon(b: ir.IRBuilder, sums: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Of signed bytes both; 0 to 15 are the same."""
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    return call_llvm(b, name, sums.type, sums, _as_bytes(b, unsigned), _as_bytes(b, signed))


def _one_by_one(b: ir.IRBuilder, sums: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """For any CPU: byte after byte of each lane."""
    for byte in range(4):
        number = b.and_(b.lshr(unsigned, int_lanes(8 * byte)), int_lanes(0xFF))
        digit = b.ashr(b.shl(signed, int_lanes(24 - 8 * byte)), int_lanes(24))
        sums = b.add(sums, b.mul(number, digit))
    return sums


@njit(error_model="numpy", forceinline=True)
def split(x: int, groups: int, out: int) -> None:
    """`groups` (at least 4) times 32 float32 from address `x` -> blocks from address `out`.

    The last block is the last four groups; those that the one before has already count as zeros.
    """
    for start in range(0, groups, BLOCK_GROUPS):
        first = min(start, groups - BLOCK_GROUPS)
        for member in range(BLOCK_GROUPS):
            group = first + member
            _split_group(x + 128 * group, group < start, out + 16 * member)
        out += BLOCK_BYTES


@njit(error_model="numpy", forceinline=True)
def _split_group(x: int, is_zero: bool, out: int) -> None:
    """One group from address `x` -> its sixteenth of each part of a block."""
    low, high = load(x, np.float32), load(x + 64, np.float32)
    size = largest(low, high)
    step, inverse = np.float32(0), np.float32(0)
    if not (is_zero or size < _NOTHING):
        step, inverse = size / _LARGEST, _LARGEST / size
    store_step(out + 448, step)
    low_numbers = to_ints(multiply(low, splat(inverse)))
    high_numbers = to_ints(multiply(high, splat(inverse)))
    store_offsets(out + 384, add_ints(low_numbers, high_numbers))
    for digit in range(256, -1, -128):
        store_bytes(out + digit, last_digit(low_numbers))
        store_bytes(out + digit + 64, last_digit(high_numbers))
        low_numbers, high_numbers = other_digits(low_numbers), other_digits(high_numbers)


@njit(error_model="numpy", forceinline=True)
def dot_block(weights: int, block: int) -> Any:
    """A block of 4-bit weights times one of digits: four lanes a group, before the scales."""
    numbers = load_ints(weights)
    low, high = low_halves(numbers), high_halves(numbers)
    sums = dot_bytes(no_ints(), low, load_ints(block))
    sums = times_256(dot_bytes(sums, high, load_ints(block + 64)))
    sums = dot_bytes(sums, low, load_ints(block + 128))
    sums = times_256(dot_bytes(sums, high, load_ints(block + 192)))
    # Summed apart, for shorter chains. No sum is too large: 8 values of 2**23 times 8.
    rest = dot_bytes(load_ints(block + 384), low, load_ints(block + 256))
    rest = dot_bytes(rest, high, load_ints(block + 320))
    return multiply(to_floats(add_ints(sums, rest)), load(block + 448, np.float32))
