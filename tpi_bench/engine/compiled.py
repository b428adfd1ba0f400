"""Kernels as machine code, and how they are run: by one thread or by the threads that torch has.

Asks for numba only here and in what is loaded from here: a host without it has no kernels, and
`matrix.py` multiplies with torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

_Run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


_num_modes = torch._C._len_torch_dispatch_stack  # TorchDispatchModes that are active


def is_traced(x: torch.Tensor) -> bool:
    """Whether there are only shapes, or somebody counts operators: torch has to see one."""
    return x.is_meta or _num_modes() > 0


class Kernel:
    """A compiled function of one task; both ways of running it let other Python threads go on."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._compiled = _compile(function)  # owns the code
        self._address = self._compiled.address
        self._alone = _Run(self._address)

    def __call__(self, task: int, num_threads: int = 1) -> None:
        """Run on the task at address `task`, in `num_threads` threads at once."""
        if num_threads == 1:
            self._alone(task)
        else:
            in_parallel()(self._address, task, num_threads, 0)


@functools.cache
def kernels() -> dict[str, Kernel]:
    """All kernels by name, compiled at the first call; empty where that cannot be done."""
    functions = _functions()
    if functions and not _are_on_disk(functions):
        return {}
    return {function.__name__: Kernel(function) for function in functions}


def is_amd_zen() -> bool:
    """Whether kernels run on a processor of that family."""
    if not kernels():
        return False
    from tpi_bench.engine import vectors

    return vectors.is_amd_zen()


def prepare() -> None:
    """Load all kernels into this process, compiled in another where they are not on the disk."""
    kernels()


def compile_all() -> None:
    """Leave all kernels in numba's cache on the disk."""
    for function in _functions():
        _compile(function)


def _are_on_disk(functions: Sequence[Callable[[Any], None]]) -> bool:
    """Compile what is not on the disk yet, in another process; whether that could be done.

    Compiling leaves tens of megabytes behind, which would be in the memory of every device that is
    forked from here, the first time only. And an LLVM that does not know an instruction ends the
    process that asks for it.
    """
    if not _is_missing(functions[-1]):
        return True  # or nothing can be kept there, and each process compiles for itself
    with _alone():
        if not _is_missing(functions[-1]):
            return True  # as another program has compiled it meanwhile
        code = f"from {__name__} import compile_all; compile_all()"
        done = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL)
    return done.returncode == 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One program of this host at a time; where files cannot be locked, whoever comes."""
    with open(__file__) as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _functions() -> tuple[Callable[[Any], None], ...]:
    try:
        from tpi_bench.engine.kernels import PRODUCTS, WIDENING
        from tpi_bench.engine.packing_kernels import PACKING
        from tpi_bench.engine.position_kernels import ONE_POSITION
        from tpi_bench.engine.vectors import is_known_processor
    except ImportError:
        return ()
    return (*PRODUCTS, *WIDENING, *ONE_POSITION, *PACKING) if is_known_processor() else ()


def _is_missing(function: Callable[[Any], None]) -> bool:
    """Whether a kernel is not in numba's cache, though there is a place for one."""
    from numba.core.caching import FunctionCache
    from numba.core.registry import cpu_target

    from tpi_bench.engine.fields import SIGNATURE

    try:
        return FunctionCache(function).load_overload(SIGNATURE, cpu_target.target_context) is None
    except (RuntimeError, OSError):
        return False


def _compile(function: Callable[[Any], None]) -> Any:
    """From numba's cache on disk, if there is a place for one."""
    from numba import cfunc

    from tpi_bench.engine.fields import SIGNATURE

    try:
        return cfunc(SIGNATURE, cache=True, error_model="numpy")(function)
    except (RuntimeError, OSError):
        return cfunc(SIGNATURE, error_model="numpy")(function)


@functools.cache
def in_parallel() -> Callable[[int, int, int, int], None]:
    """OpenMP's `GOMP_parallel(function, argument, num_threads, flags)`, of torch's own OpenMP.

    So kernels share the threads that torch keeps awake between its operators. GNU's and LLVM's
    runtime both have it; where neither is found, the caller's thread does all the work.
    """
    folder = Path(torch.__file__).parent / "lib"
    for library in (None, *map(str, sorted(folder.glob("*omp*")))):
        try:
            parallel = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError):
            continue
        pointer, number = ctypes.c_void_p, ctypes.c_uint
        parallel.argtypes, parallel.restype = [pointer, pointer, number, number], None
        return parallel
    return lambda function, task, _num_threads, _flags: _Run(function)(task)
