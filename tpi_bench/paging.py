"""The page cache of a virtual device: how much of its mapped files is in memory.

The least recently used pages go first. Files are touched from their start, so what is left of one
is always its end: that keeps the account as small as the number of files. A cyclic scan of more
than fits hits nothing: each page is evicted right before it is needed again. Linux is kinder at
times (it keeps an active list); `fig_comparison` shows what it really does.
"""

from __future__ import annotations

# Linux reads 128 KiB ahead (read_ahead_kb), and twice that of a file that is advised as sequential.
READ_AHEAD_BYTES = 256 << 10
READS_IN_FLIGHT = 2  # the part that is waited for, and the next


class PageCache:
    """Cached bytes at the end of each file, the least recently used first."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], int] = {}

    def touch(self, path: str, nbytes: int, capacity_bytes: int) -> int:
        """Touch the first `nbytes` of a file in order; how many of them must be read.

        The cache holds no more than `capacity_bytes` at any moment. Another `nbytes` of the same
        path counts as another file.
        """
        self._shrink(capacity_bytes)
        file = (path, nbytes)
        held = self._held.get(file, 0)
        before = 0  # bytes that are evicted before those of this file
        for other, size in self._held.items():
            if other == file:
                break
            before += size
        room = capacity_bytes - sum(self._held.values())
        missing = nbytes - held
        if missing > room + before:  # its own end is evicted as fast as its start is read
            missing = nbytes
        self._held.pop(file, None)
        self._held[file] = nbytes
        self._shrink(capacity_bytes)
        return missing

    def _shrink(self, capacity_bytes: int) -> None:
        excess = sum(self._held.values()) - capacity_bytes
        for file in list(self._held):
            if excess <= 0:
                return
            evicted = min(excess, self._held[file])
            excess -= evicted
            self._held[file] -= evicted
            if not self._held[file]:
                del self._held[file]
