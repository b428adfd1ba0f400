"""Values into groups of a message and out of them: numba kernels, for `groups.py`.

A task has COLS values in whole groups: int8 at VALUES, a float16 for each group at SCALES, and
float32 at X, which are packed, or at OUT, which are unpacked or added to. One thread does it all:
it is a few microseconds' work. The bits are those of `groups.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tpi_bench.engine.digits import store_bytes, to_ints
from tpi_bench.engine.fields import field
from tpi_bench.engine.task import COLS, OUT, SCALES, VALUES, X
from tpi_bench.engine.vectors import (
    FLOAT,
    HALF,
    float32,
    fma,
    int64,
    largest,
    load,
    load_scale,
    multiply,
    operation,
    read,
    splat,
    store,
    void,
    write,
)
from tpi_bench.engine.wire import LEAST_SCALE, STEP

_STEP, _LEAST_SCALE = np.float32(STEP), np.float32(LEAST_SCALE)
_ONE = np.float32(1)


@operation(void, int64, float32)
def store_scale(b: ir.IRBuilder, address: ir.Value, scale: ir.Value) -> None:
    """Rounded to float16."""
    write(b, address, b.fptrunc(scale, HALF))


@operation(float32, int64)
def load_one_scale(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return b.fpext(read(b, address, HALF), FLOAT)


def pack_groups(task: Any) -> None:
    values, scales = field(task, VALUES), field(task, SCALES)
    x = field(task, X)
    for _group in range(field(task, COLS) >> 5):
        low, high = load(x, np.float32), load(x + 64, np.float32)
        store_scale(scales, largest(low, high) * _STEP + _LEAST_SCALE)
        inverse = splat(_ONE / load_one_scale(scales))
        store_bytes(values, to_ints(multiply(low, inverse)))
        store_bytes(values + 16, to_ints(multiply(high, inverse)))
        x, values, scales = x + 128, values + 32, scales + 2


def unpack_groups(task: Any) -> None:
    values, scales = field(task, VALUES), field(task, SCALES)
    out = field(task, OUT)
    for _group in range(field(task, COLS) >> 5):
        scale = load_scale(scales)
        store(out, multiply(load(values, np.int8), scale))
        store(out + 64, multiply(load(values + 16, np.int8), scale))
        out, values, scales = out + 128, values + 32, scales + 2


def add_groups(task: Any) -> None:
    values, scales = field(task, VALUES), field(task, SCALES)
    out = field(task, OUT)
    for _group in range(field(task, COLS) >> 5):
        scale = load_scale(scales)
        store(out, fma(load(values, np.int8), scale, load(out, np.float32)))
        store(out + 64, fma(load(values + 16, np.int8), scale, load(out + 64, np.float32)))
        out, values, scales = out + 128, values + 32, scales + 2


PACKING = (pack_groups, unpack_groups, add_groups)
