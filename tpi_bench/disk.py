"""Reading block files on this host: direct I/O into the caller's buffers, several requests at once.

O_DIRECT (F_NOCACHE on macOS) keeps the page cache out of it, so a block costs what the disk costs
every time. Where the file system refuses, reads are buffered and the pages dropped right after;
`mode` says which, and every row of results carries it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tpi_bench.runtime import BlockReadError
from tpi_bench.weights import BlockFile

_PIECE_BYTES = 2 << 20
_F_NOCACHE = 48  # macOS


class DirectReader:
    """A few reader threads for one device; they hold the interpreter lock only between reads."""

    def __init__(self, num_threads: int = 4) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="reader")
        self._files: dict[str, int] = {}
        self.mode = "none"
        self.bytes_read = 0

    def read(
        self, block: BlockFile, out: np.ndarray, on_done: Callable[[int, int], None]
    ) -> PendingRead:
        """Start to read the block into `out`; `on_done(start_ns, end_ns)` when it is there."""
        pending = PendingRead(block, -(-block.nbytes // _PIECE_BYTES), on_done)
        target = out.data
        self.bytes_read += block.nbytes
        for start in range(0, block.nbytes, _PIECE_BYTES):
            piece = target[start : min(start + _PIECE_BYTES, block.nbytes)]
            self._pool.submit(self._read_piece, pending, piece, block.data_offset + start)
        return pending

    def open(self, blocks: list[BlockFile]) -> None:
        """Open every file once, so that the run does not pay for it. Raises BlockReadError."""
        for path in {block.path for block in blocks}:
            try:
                self._files[path] = self._open(path)
            except OSError as error:
                raise BlockReadError(f"cannot read block {path}: {error.strerror}") from error

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        for file in self._files.values():
            os.close(file)

    def _open(self, path: str) -> int:
        file, mode = None, "buffered, dropped after each read"
        if hasattr(os, "O_DIRECT"):
            try:
                file, mode = os.open(path, os.O_RDONLY | os.O_DIRECT), "direct"
                os.preadv(file, [aligned_page()], 0)
            except OSError:  # tmpfs and some network file systems know no direct I/O
                if file is not None:
                    os.close(file)
                file, mode = os.open(path, os.O_RDONLY), "buffered, dropped after each read"
        else:
            file = os.open(path, os.O_RDONLY)
            if hasattr(fcntl, "F_FULLFSYNC"):
                fcntl.fcntl(file, _F_NOCACHE, 1)
                mode = "direct"
        self.mode = mode
        return file

    def _read_piece(self, pending: PendingRead, piece: memoryview, offset: int) -> None:
        start_ns = time.monotonic_ns()
        try:
            done = 0
            while done < piece.nbytes:
                got = os.preadv(self._files[pending.block.path], [piece[done:]], offset + done)
                if got == 0:
                    raise OSError(0, f"the file ends {piece.nbytes - done} bytes early")
                done += got
            if self.mode.startswith("buffered") and hasattr(os, "posix_fadvise"):
                file = self._files[pending.block.path]
                os.posix_fadvise(file, offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
            pending.piece_done(start_ns, None)
        except OSError as error:
            pending.piece_done(start_ns, error)


class PendingRead:
    """Handle of one block's read; done when its last piece is."""

    def __init__(
        self, block: BlockFile, num_pieces: int, on_done: Callable[[int, int], None]
    ) -> None:
        self.block = block
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
        self._finished.wait()
        if self._error:
            reason = self._error.strerror or str(self._error)
            raise BlockReadError(f"cannot read block {self.block.path}: {reason}")


def aligned_page() -> memoryview:
    """One page at a page boundary, as direct I/O needs it."""
    return memoryview(mmap.mmap(-1, mmap.PAGESIZE))
