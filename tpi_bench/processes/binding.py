"""A core for each of a device's two threads, where it may use two cores.

A thread that slept until the disk or a link had brought something may wake up on the core of the
other, and the kernel takes milliseconds to part them: with weights in 8 bits from the disk the
products of a token took longer on two cores than on one. More threads on more cores have not been
measured, and OpenMP ends and makes some of them between its regions, so they are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading

from tpi_bench.engine.compiled import in_parallel


def bind_threads(num_threads: int) -> bool:
    """Give both threads that compute a core of their own, for good; whether that was done.

    Not where there are more cores, among which the kernel may choose, or one. Threads that this
    one makes from now on must give themselves other cores, as `host/cores.py` helps them to.
    """
    if num_threads != 2 or not hasattr(os, "sched_setaffinity"):
        return False
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) != num_threads:
        return False
    found: list[int] = []

    def tell(_argument: int | None) -> None:
        found.append(threading.get_native_id())

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(tell)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    in_parallel()(address, 0, num_threads, 0)
    if len(set(found)) != num_threads:  # without OpenMP, or with fewer threads than were asked for
        return False
    try:
        for thread, core in zip(found, cores, strict=True):
            os.sched_setaffinity(thread, {core})
    except OSError:  # not allowed here
        for thread in found:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, cores)
        return False
    return True
