"""A core for each of a device's threads, where it has as many threads as it may use cores.

A thread that slept until the disk or a link had brought something may wake up on the core of the
next one, and the kernel takes milliseconds to part them: with weights in 8 bits from the disk the
products of a token took 105 ms on two cores, as on one, and 40 once each thread had its own.
"""

from __future__ import annotations

import ctypes
import itertools
import os

from tpi_bench.engine.compiled import in_parallel


def bind_threads(num_threads: int) -> bool:
    """Give each of the threads that compute a core of its own, for good; whether that was done.

    Not where there are more cores, among which the kernel may choose, or fewer.
    """
    if num_threads < 2 or not hasattr(os, "sched_setaffinity"):
        return False
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) != num_threads:
        return False
    numbers = itertools.count()

    def bind(_argument: int | None) -> None:
        os.sched_setaffinity(0, {cores[next(numbers) % num_threads]})  # of the calling thread

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(bind)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    in_parallel()(address, 0, num_threads, 0)
    return True
