"""Reading files on this host: direct I/O into the caller's buffers, several requests at once.

O_DIRECT (F_NOCACHE on macOS) keeps the page cache out of it, so a block costs what the disk costs
every time. Where the file system refuses, reads are buffered and the pages dropped right after;
`mode` says which, and every row of results carries it. On Linux the kernel reads asynchronously
(`aio.py`); elsewhere, and for buffered reads, a few threads do.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpi_bench.contract.blocks import Extent
from tpi_bench.contract.runtime import BlockReadError
from tpi_bench.host.aio import KernelAio, ReadRequest
from tpi_bench.host.cores import on_any_core

_PIECE_BYTES = 2 << 20
_SMALL_BYTES = 64 << 10  # a read that is waited for now, and does not wait for those read ahead
_F_NOCACHE = 48  # macOS
_BUFFERED = "buffered, dropped after each read"


@dataclass(frozen=True)
class _OpenFile:
    number: int
    mode: str


class DirectReader:
    """All reads of one device; `read`, `notice` and `wait` belong to one thread."""

    def __init__(self, num_threads: int = 4) -> None:
        self._pool = ThreadPoolExecutor(
            num_threads, thread_name_prefix="reader", initializer=on_any_core()
        )
        self._files: dict[str, _OpenFile] = {}
        self._aio: KernelAio | None = None
        with contextlib.suppress(OSError):  # threads do it where the kernel does not
            self._aio = KernelAio()
        self._mapped: dict[str, np.ndarray] = {}
        self.mode = "none"
        self.bytes_read = 0

    def read(
        self, extent: Extent, out: np.ndarray, on_done: Callable[[int, int], None]
    ) -> PendingRead:
        """Start to read an opened file's bytes into `out`; `on_done(start_ns, end_ns)` at the end.

        Small reads come before large ones that the disk has not been asked for yet.
        A read by the kernel is known to have ended when `notice` or `wait` is called next.
        """
        pieces = range(0, extent.nbytes, _PIECE_BYTES)
        pending = PendingRead(extent, len(pieces), on_done, self._aio)
        file = self._files[extent.path]
        self.bytes_read += extent.nbytes
        if self._aio and file.mode == "direct":
            requests = [_request(pending, file, out, start) for start in pieces]
            self._aio.start(requests, first=extent.nbytes <= _SMALL_BYTES)
            return pending
        for start in pieces:
            piece = out.data[start : min(start + _PIECE_BYTES, extent.nbytes)]
            self._pool.submit(_read_piece, pending, file, piece, extent.offset + start)
        return pending

    def map(self, extent: Extent) -> np.ndarray:
        """The bytes as private mapped memory; each file is mapped once. Raises BlockReadError.

        The kernel is advised as llama.cpp does it: access is sequential, all of it is wanted soon.
        """
        data = self._mapped.get(extent.path)
        if data is None:
            self.mode = "mapped files"
            data = self._mapped[extent.path] = map_file(extent)
        return data

    def map_anew(self, extent: Extent) -> np.ndarray:
        """The bytes as private mapped memory of their own, without advice: it ends with the array.

        As libraries that open a file for each tensor. Raises BlockReadError.
        """
        self.mode = "mapped files, anew for each use"
        return _map(extent, is_advised=False)

    def notice(self) -> None:
        """See which reads have ended. Never waits."""
        if self._aio:
            self._aio.notice(wait=False)

    def open(self, paths: Iterable[str]) -> None:
        """Open every file once, so that the run does not pay for it. Raises BlockReadError."""
        for path in set(paths):
            try:
                self._files[path] = _open(path)
            except OSError as error:
                raise _unreadable("read", path, error) from error
            self.mode = self._files[path].mode

    def close(self) -> None:
        if self._aio:
            self._aio.close()
        self._pool.shutdown(wait=True)
        for file in self._files.values():
            os.close(file.number)


def _open(path: str) -> _OpenFile:
    if hasattr(os, "O_DIRECT"):
        file = None
        try:
            file = os.open(path, os.O_RDONLY | os.O_DIRECT)
            os.preadv(file, [aligned_page()], 0)
            return _OpenFile(file, "direct")
        except OSError:  # tmpfs and some network file systems know no direct I/O
            if file is not None:
                os.close(file)
            return _OpenFile(os.open(path, os.O_RDONLY), _BUFFERED)
    file = os.open(path, os.O_RDONLY)
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(file, _F_NOCACHE, 1)
        return _OpenFile(file, "direct")
    return _OpenFile(file, _BUFFERED)


def map_file(extent: Extent) -> np.ndarray:
    """Bytes of a file as private mapped memory (uint8). Raises BlockReadError.

    The kernel's read-ahead takes larger and larger folios the longer it follows one file, and a
    block's file ends before they are large; a large folio is one page fault. Huge pages from the
    start are what one large file gets: without, this disk gave 0.8 GB/s under a cap, with them 1.8,
    as from a GGUF file.
    """
    return _map(extent, is_advised=True)


def _map(extent: Extent, *, is_advised: bool) -> np.ndarray:
    try:
        with open(extent.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < extent.offset + extent.nbytes:
                raise _too_short(extent.offset + extent.nbytes - size)
            if is_advised and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants it writable
    except OSError as error:
        raise _unreadable("map", extent.path, error) from error
    for advice in ("MADV_HUGEPAGE", "MADV_WILLNEED") if is_advised else ():
        with contextlib.suppress(AttributeError, OSError):  # no promise is made with them
            area.madvise(getattr(mmap, advice))
    return np.frombuffer(area, np.uint8, extent.nbytes, extent.offset)


def read_file(extent: Extent, out: np.ndarray) -> None:
    """Read bytes of a file into `out` (uint8), through the page cache. Raises BlockReadError."""
    try:
        with open(extent.path, "rb") as file:
            _read_all(file.fileno(), out.data[: extent.nbytes], extent.offset)
    except OSError as error:
        raise _unreadable("read", extent.path, error) from error


def _read_all(number: int, out: memoryview, offset: int) -> None:
    """One call reads 2 GB at most."""
    done = 0
    while done < out.nbytes:
        got = os.preadv(number, [out[done:]], offset + done)
        if got == 0:
            raise _too_short(out.nbytes - done)
        done += got


def _request(pending: PendingRead, file: _OpenFile, out: np.ndarray, start: int) -> ReadRequest:
    nbytes = min(_PIECE_BYTES, pending.extent.nbytes - start)
    start_ns = time.monotonic_ns()

    def done(result: int) -> None:
        error = None
        if result < 0:
            error = OSError(-result, os.strerror(-result))
        elif result < nbytes:
            error = _too_short(nbytes - result)
        pending.piece_done(start_ns, error)

    offset = pending.extent.offset + start
    target = file.number, out.ctypes.data + start, nbytes, offset
    return ReadRequest(*target, done, pending, pending.extent.nbytes)


def _read_piece(pending: PendingRead, file: _OpenFile, piece: memoryview, offset: int) -> None:
    start_ns = time.monotonic_ns()
    try:
        _read_all(file.number, piece, offset)
        if file.mode == _BUFFERED and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.number, offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
        pending.piece_done(start_ns, None)
    except OSError as error:
        pending.piece_done(start_ns, error)


def _too_short(missing: int) -> OSError:
    return OSError(0, f"the file ends {missing} bytes early")


def _unreadable(verb: str, path: str, error: OSError) -> BlockReadError:
    return BlockReadError(f"cannot {verb} block {path}: {error.strerror or error}")


class PendingRead:
    """Handle of one read; done when its last piece is."""

    def __init__(
        self,
        extent: Extent,
        num_pieces: int,
        on_done: Callable[[int, int], None],
        aio: KernelAio | None,
    ) -> None:
        self.extent = extent
        self._aio = aio
        self._left = num_pieces
        self._on_done = on_done
        self._error: OSError | None = None
        self._start_ns = 0
        self._lock = threading.Lock()
        self._finished = threading.Event()

    def piece_done(self, start_ns: int, error: OSError | None) -> None:
        with self._lock:
            self._start_ns = min(self._start_ns or start_ns, start_ns)
            self._error = self._error or error
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._on_done(self._start_ns, time.monotonic_ns())
            self._finished.set()

    def wait(self) -> None:
        while self._aio and not self._finished.is_set() and not self._aio.is_idle:
            self._aio.notice(wait=True)
        self._finished.wait()
        if self._aio:
            self._aio.run_ahead()
        if self._error:
            raise _unreadable("read", self.extent.path, self._error)


def disk_bytes_read() -> float:
    """What this process has made the disk read so far, page-ins of mapped files included.

    NaN where the system keeps no such count.
    """
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return math.nan
    counts = dict(line.split(": ") for line in lines)
    return float(counts["read_bytes"])


def aligned_page() -> memoryview:
    """One page at a page boundary, as direct I/O needs it."""
    return memoryview(mmap.mmap(-1, mmap.PAGESIZE))
