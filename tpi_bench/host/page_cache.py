"""What a point finds in the page cache: `cache=cold` drops its files, `cache=warm` leaves them.

The launcher does it right before the devices start, and counts what is cached then. Pages that
another process maps cannot be dropped; files that were just written are synced first. Where it may
(as root), `cold` has the kernel put free memory together too: on a host that had been up for a day
mapped files were three times as fast, or more, once its caches had been dropped and its memory put
together. Which of the two it was has not been isolated; that large pieces of memory matter is
likely.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MODES = ("cold", "warm")
_NOT_DROPPED = "not dropped on this system"
_SPAN_BYTES = 1 << 30  # mapped at a time
_LARGE_BYTES = 2 << 20
_COMPACT = Path("/proc/sys/vm/compact_memory")
_FREE_PIECES = Path("/proc/buddyinfo")


def begin(files: Sequence[str], mode: str) -> tuple[str, float]:
    """Make the cache `mode` for these files; what the row says of it, and bytes cached now."""
    if mode == "cold":
        if not hasattr(os, "posix_fadvise"):
            return _NOT_DROPPED, math.nan
        for path in files:
            drop(path)
        compact()
    return mode, cached_bytes(files)


def compact() -> bool:
    """Have the kernel put free memory together, in a second or so; whether it was allowed."""
    try:
        _COMPACT.write_text("1")
    except OSError:  # not root, not Linux, or a kernel without it
        return False
    return True


def large_free_bytes() -> float:
    """Free memory in pieces of 2 MB at least; NaN where the kernel does not tell."""
    try:
        lines = _FREE_PIECES.read_text().splitlines()
    except OSError:
        return math.nan
    counts = [line.split()[4:] for line in lines]  # Node 0, zone Normal, then 1, 2, 4, ... pages
    return float(
        sum(
            int(count) * mmap.PAGESIZE << order
            for each in counts
            for order, count in enumerate(each)
            if mmap.PAGESIZE << order >= _LARGE_BYTES
        )
    )


def drop(path: str) -> None:
    """Drop a file from the page cache, as far as the kernel can."""
    with contextlib.suppress(OSError):  # whoever opens it in the run says what is wrong with it
        number = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            if cached_bytes([path]) > 0:
                os.fsync(number)  # pages that are not on the disk yet stay
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(number)


def cached_bytes(files: Sequence[str]) -> float:
    """Bytes of `files` in the page cache, in whole pages; NaN where the kernel does not tell."""
    if sys.platform != "linux":
        return math.nan
    total = 0.0
    for path in files:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            total += _cached_in(file.fileno())
    return total


def _cached_in(number: int) -> float:
    """mincore(2) answers only for files that one owns or may write, and else says all is there."""
    status = os.fstat(number)
    if os.geteuid() not in (0, status.st_uid):
        return math.nan
    libc = ctypes.CDLL(None, use_errno=True)
    total = 0
    for start in range(0, status.st_size, _SPAN_BYTES):
        length = min(_SPAN_BYTES, status.st_size - start)
        area = np.frombuffer(
            mmap.mmap(number, length, prot=mmap.PROT_READ, offset=start), dtype=np.uint8
        )
        pages = np.zeros(-(-length // mmap.PAGESIZE), dtype=np.uint8)
        address, size = ctypes.c_void_p(area.ctypes.data), ctypes.c_size_t(length)
        if libc.mincore(address, size, ctypes.c_void_p(pages.ctypes.data)):
            return math.nan
        total += int((pages & 1).sum()) * mmap.PAGESIZE
    return total
