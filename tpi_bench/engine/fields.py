"""How kernels read a task (`task.py`)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llvmlite import ir
from numba import types

from tpi_bench.engine.vectors import FLOAT, I64, float32, int64, operation, void

_PARTS = ("vectors", "fields", "task", "digits")
_SOURCES = (*_PARTS, "kernels", "row_sums", "position_kernels", "packing_kernels", "wire")


def _digest() -> str:
    """Of all that kernels are made of; numba's cache looks at the file alone that a kernel is in.

    A part of the name of the type that all kernels take, and so of the key to that cache.
    """
    folder = Path(__file__).parent
    text = b"".join((folder / f"{name}.py").read_bytes() for name in _SOURCES)
    return hashlib.sha256(text).hexdigest()[:16]


TASK = types.RawPointer(f"task of {_digest()}")
SIGNATURE = void(TASK)


def _place(b: ir.IRBuilder, task: ir.Value, number: ir.Value) -> ir.Value:
    return b.gep(b.bitcast(task, ir.PointerType(I64)), [number])


@operation(int64, TASK, int64)
def field(b: ir.IRBuilder, task: ir.Value, number: ir.Value) -> ir.Value:
    return b.load(_place(b, task, number))


@operation(float32, TASK, int64)
def real_field(b: ir.IRBuilder, task: ir.Value, number: ir.Value) -> ir.Value:
    value = b.bitcast(b.load(_place(b, task, number)), ir.DoubleType())
    return b.fptrunc(value, FLOAT)


@operation(int64, TASK, int64, int64)
def take(b: ir.IRBuilder, task: ir.Value, number: ir.Value, count: ir.Value) -> ir.Value:
    """The number in a field, which grows by `count`: no two threads get the same."""
    return b.atomic_rmw("add", _place(b, task, number), count, "monotonic")
