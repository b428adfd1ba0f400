"""Norm and gated activation, for one position or a few by kernels (`position_kernels.py`).

torch takes longer to call its operators than they take. More positions, and shapes that kernels do
not take, are computed by torch. As operators of torch they are `tpi_bench::rms_norm` and
`tpi_bench::gate`, which is what virtual time counts (see `matrix.py`).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import library

from tpi_bench.contract.model import FEW
from tpi_bench.engine.compiled import is_traced, kernels
from tpi_bench.engine.task import NUM_NEW, OUT, VALUES, Task, X

_LANES = 16


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm of x (T, h) over h, in fp32, times the weight (h,)."""
    if x.shape[0] > FEW:
        return _norm_by_torch(x, weight, eps)
    if is_traced(x):
        out: torch.Tensor = torch.ops.tpi_bench.rms_norm(x, weight, eps)
        return out
    return _norm_rows(x, weight, eps)


def gate(both: torch.Tensor) -> torch.Tensor:
    """gate and up (T, 2 c) -> silu(gate) * up (T, c)."""
    if both.shape[0] > FEW:
        return _gate_by_torch(both)
    if is_traced(both):
        out: torch.Tensor = torch.ops.tpi_bench.gate(both)
        return out
    return _gate_rows(both)


def _norm_rows(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    cols = x.shape[1]
    if cols % _LANES or not kernels():
        return _norm_by_torch(x, weight, eps)
    task = _norm_task(cols, eps)
    rows, factors, out = x.float().contiguous(), weight.float(), torch.empty(x.shape)
    task.point(VALUES, factors)
    task.point(X, rows)
    task.point(OUT, out)
    task.put(NUM_NEW, x.shape[0])
    kernels()["rms_norm"](task.place)
    return out.to(x.dtype)


def _gate_rows(both: torch.Tensor) -> torch.Tensor:
    cols = both.shape[1] // 2
    if cols % _LANES or not kernels():
        return _gate_by_torch(both)
    task = _gate_task(cols)
    rows, out = both.float().contiguous(), torch.empty((both.shape[0], cols))
    task.point(X, rows)
    task.point(OUT, out)
    task.put(NUM_NEW, both.shape[0])
    kernels()["gate"](task.place)
    return out.to(both.dtype)


@functools.cache
def _norm_task(cols: int, eps: float) -> Task:
    task = Task(1, cols)
    task.put_real(eps)
    return task


@functools.cache
def _gate_task(cols: int) -> Task:
    return Task(1, cols)


def _norm_by_torch(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight.float(), eps)
    return weight.to(x.dtype) * F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype)


def _gate_by_torch(both: torch.Tensor) -> torch.Tensor:
    up_to, up = both.chunk(2, dim=-1)
    return F.silu(up_to) * up


_LIBRARY = library.Library("tpi_bench", "FRAGMENT")
_LIBRARY.define("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor")
_LIBRARY.impl("rms_norm", _norm_rows, "CPU")
_LIBRARY.impl("rms_norm", lambda x, weight, eps: torch.empty_like(x), "Meta")
_LIBRARY.define("gate(Tensor both) -> Tensor")
_LIBRARY.impl("gate", _gate_rows, "CPU")
_LIBRARY.impl("gate", lambda both: both.new_empty((both.shape[0], both.shape[1] // 2)), "Meta")
