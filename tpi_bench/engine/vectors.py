"""Sixteen 32-bit values as one value in numba code: what the kernels are written with.

Each operation is a few LLVM instructions on a generic vector type, so it runs on any CPU: as one
AVX-512 instruction, two of AVX2 or four of NEON. Addresses are plain integers and need no
alignment. `kernels.py` and its like call these; nobody loads this file where numba is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, HALF = ir.FloatType(), ir.HalfType()
FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
# How each type lies in memory. numba knows no bfloat16: it goes by uint16.
_STORED = {types.float32: FLOAT, types.float16: HALF, types.uint16: I16, types.int8: I8}


class Floats(types.Type):
    """Sixteen float32."""

    def __init__(self) -> None:
        super().__init__("Floats")


class Ints(types.Type):
    """Sixteen int32, each also four bytes."""

    def __init__(self) -> None:
        super().__init__("Ints")


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, FLOATS)


@register_model(Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, INTS)


floats, ints = Floats(), Ints()
float32, int64, void = types.float32, types.int64, types.void
Emit = Callable[..., "ir.Value | None"]


def features(context: Any) -> set[str]:
    """Of the processor that numba compiles for, as LLVM calls them, after its architecture."""
    triple, _, flags = context.codegen().magic_tuple()
    return {triple.split("-")[0], *(flag[1:] for flag in flags.split(",") if flag[:1] == "+")}


def is_known_processor() -> bool:
    """Whether all operations are there: bytes in the usual order, and float16."""
    known = features(cpu_target.target_context)
    return {"x86_64", "f16c"} <= known or "aarch64" in known or "arm64" in known


def is_amd_zen() -> bool:
    """Of which generation is not asked."""
    return str(cpu_target.target_context.codegen().magic_tuple()[1]).startswith("znver")


def has_avx512() -> bool:
    """32 registers of sixteen values each."""
    return "avx512f" in features(cpu_target.target_context)


def operation(result: types.Type, *takes: types.Type) -> Callable[[Emit], Any]:
    """Makes `emit(builder, *values)` a function of numba code, from `takes` to `result`."""

    def register(emit: Emit) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, _sig: Any, values: Any) -> ir.Value:
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        def typing(_context: Any, *_given: types.Type) -> Any:
            return result(*takes), generate

        functools.update_wrapper(typing, emit)  # its parameters too: a builder, and the values
        return intrinsic(typing)

    return register


def int_lanes(value: int) -> ir.Constant:
    return ir.Constant(INTS, [value] * LANES)


def _pointer(b: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    return b.inttoptr(address, ir.PointerType(kind))


def read(b: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    value = b.load(_pointer(b, address, kind))
    value.align = 1
    return value


def write(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    b.store(value, _pointer(b, address, value.type)).align = 1


def call_llvm(b: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    """An intrinsic of LLVM itself."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), values)


def _widen(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """Sixteen values of a stored type as float32; whole 16-bit numbers are bfloat16."""
    element = values.type.element
    if element == I8:
        return b.sitofp(b.sext(values, INTS), FLOATS)
    if element == I16:
        return b.bitcast(b.shl(b.zext(values, INTS), int_lanes(16)), FLOATS)
    return values if element == FLOAT else b.fpext(values, FLOATS)


def _narrow(b: ir.IRBuilder, values: ir.Value, element: ir.Type) -> ir.Value:
    """float32 as float16 or, for whole 16-bit numbers, bfloat16."""
    if element == FLOAT:
        return values
    if element == HALF:
        return b.fptrunc(values, ir.VectorType(HALF, LANES))
    bits = b.bitcast(values, INTS)
    is_odd = b.and_(b.lshr(bits, int_lanes(16)), int_lanes(1))
    rounded = b.lshr(b.add(b.add(bits, int_lanes(0x7FFF)), is_odd), int_lanes(16))
    no_number = b.fcmp_unordered("uno", values, values)
    return b.trunc(b.select(no_number, int_lanes(0x7FC0), rounded), ir.VectorType(I16, LANES))


def _splat(b: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """One value in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    one = b.insert_element(undefined, value, ir.Constant(I32, 0))
    return b.shuffle_vector(one, undefined, int_lanes(0))


def shuffle(b: ir.IRBuilder, values: ir.Value, lanes: Iterable[int]) -> ir.Value:
    """These lanes, in this order."""
    order = list(lanes)
    return b.shuffle_vector(values, values, ir.Constant(ir.VectorType(I32, len(order)), order))


def join(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """The lanes of both, one after the other."""
    order = list(range(2 * low.type.count))
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, len(order)), order))


def _load(_context: Any, place: Any, kind: Any) -> Any:
    """Sixteen values of type `kind` (a numpy type) from memory, as float32."""
    stored = ir.VectorType(_STORED[kind.dtype], LANES)

    def generate(_context: Any, b: ir.IRBuilder, _sig: Any, values: Any) -> ir.Value:
        return _widen(b, read(b, values[0], stored))

    return floats(int64, kind), generate


load: Any = intrinsic(_load)


def _load_halves(shift: int) -> Any:
    @operation(floats, int64)
    def load_halves(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
        numbers = b.zext(read(b, address, ir.VectorType(I8, LANES)), INTS)
        half = b.and_(b.lshr(numbers, int_lanes(shift)), int_lanes(15))
        return b.sitofp(b.sub(half, int_lanes(8)), FLOATS)

    return load_halves


# The low and the high four bits of sixteen bytes, less 8.
load_low, load_high = _load_halves(0), _load_halves(4)


@operation(int64, int64)
def load_index(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return read(b, address, I64)


@operation(float32, int64)
def load_float(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return read(b, address, FLOAT)


@operation(floats)
def zeros(b: ir.IRBuilder) -> ir.Value:
    return ir.Constant(FLOATS, [0.0] * LANES)


@operation(floats, float32)
def splat(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return _splat(b, value, FLOATS)


@operation(floats, floats, floats)
def add(b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return b.fadd(left, right)


@operation(floats, floats, floats)
def divide(b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return b.fdiv(left, right)


@operation(floats, floats, floats)
def maximum(b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return call_llvm(b, "llvm.maximum.v16f32", FLOATS, left, right)


@operation(float32, floats)
def highest(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """The largest of the lanes."""
    return call_llvm(b, "llvm.vector.reduce.fmaximum.v16f32", FLOAT, values)


@operation(floats, floats, floats)
def multiply(b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return b.fmul(left, right)


@operation(floats, floats, floats, floats)
def fma(b: ir.IRBuilder, left: ir.Value, right: ir.Value, addend: ir.Value) -> ir.Value:
    """left * right + addend; two operations on a CPU that has no fused one."""
    return call_llvm(b, "llvm.fmuladd.v16f32", FLOATS, left, right, addend)


@operation(float32, floats)
def total(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """The sum of the lanes: halves added to halves, always in the same order."""
    half = LANES
    while half > 1:
        half //= 2
        low, high = range(half), range(half, 2 * half)
        values = b.fadd(shuffle(b, values, low), shuffle(b, values, high))
    return b.extract_element(values, ir.Constant(I32, 0))


@operation(float32, floats, floats)
def largest(b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """The largest absolute value of all lanes; not a number if there is one."""
    sizes = (call_llvm(b, "llvm.fabs.v16f32", FLOATS, values) for values in (left, right))
    both = call_llvm(b, "llvm.maximum.v16f32", FLOATS, *sizes)
    return call_llvm(b, "llvm.vector.reduce.fmaximum.v16f32", FLOAT, both)


@operation(floats, floats, int64)
def keep_last(b: ir.IRBuilder, values: ir.Value, count: ir.Value) -> ir.Value:
    """Zeros in all lanes but the last `count`."""
    first = b.trunc(b.sub(ir.Constant(I64, LANES), count), I32)
    kept = b.icmp_signed(">=", ir.Constant(INTS, list(range(LANES))), _splat(b, first, INTS))
    return b.select(kept, values, ir.Constant(FLOATS, [0.0] * LANES))


@operation(floats, int64)
def load_scale(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """One float16 in every lane."""
    return _splat(b, b.fpext(read(b, address, HALF), FLOAT), FLOATS)


@operation(floats, int64)
def load_4_scales(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """Four float16, each in four lanes that are neighbours."""
    halves = read(b, address, ir.VectorType(HALF, 4))
    scales = b.fpext(halves, ir.VectorType(FLOAT, 4))
    return shuffle(b, scales, (lane // 4 for lane in range(LANES)))


def _quarter(number: int) -> Any:
    @operation(floats, floats)
    def quarter(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
        return shuffle(b, values, [4 * number] * LANES)

    return quarter


# The first lane of each quarter, in every lane: one of `load_4_scales`.
quarter_0, quarter_1, quarter_2, quarter_3 = (_quarter(number) for number in range(4))


@operation(void, int64, float32)
def store_one(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    write(b, address, value)


@operation(void, int64, floats)
def store(b: ir.IRBuilder, address: ir.Value, values: ir.Value) -> None:
    write(b, address, values)


def _store_as(_context: Any, place: Any, given: Any, kind: Any) -> Any:
    """Sixteen values to memory, rounded to the nearest of type `kind`."""

    def generate(_context: Any, b: ir.IRBuilder, _sig: Any, values: Any) -> ir.Value:
        write(b, values[0], _narrow(b, values[1], _STORED[kind.dtype]))
        return _context.get_dummy_value()

    return void(int64, floats, kind), generate


store_as: Any = intrinsic(_store_as)


@operation(void, int64)
def prefetch(b: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for the cache line of an address, which need not be anyone's memory.

    Into the second cache: into the first, a Sapphire Rapids read bfloat16 a quarter more slowly.
    """
    read, second, data = (ir.Constant(I32, value) for value in (0, 2, 1))
    call_llvm(b, "llvm.prefetch.p0", ir.VoidType(), _pointer(b, address, I8), read, second, data)
