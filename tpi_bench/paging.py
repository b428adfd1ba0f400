"""The page cache of a virtual device: which parts of its mapped files are in memory.

Least recently used parts go first, in units of the kernel's read-ahead. A cyclic scan of more than
fits then hits nothing: each part is evicted right before it is needed again. Linux is kinder at
times (it keeps an active list); `fig_comparison` shows what it really does.
"""

from __future__ import annotations

from collections import OrderedDict

# Linux reads 128 KiB ahead (read_ahead_kb), and twice that of a file that is advised as sequential.
READ_AHEAD_BYTES = 256 << 10
READS_IN_FLIGHT = 2  # the part that is waited for, and the next


class PageCache:
    """Parts of files, by (path, index of the part), in the order of last use."""

    def __init__(self, part_bytes: int = READ_AHEAD_BYTES) -> None:
        self._part_bytes = part_bytes
        self._held: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._held_bytes = 0

    def touch(self, path: str, nbytes: int, capacity_bytes: int) -> list[int]:
        """Touch the first `nbytes` of a file in order; sizes of the parts that must be read.

        The cache holds no more than `capacity_bytes` at any moment.
        """
        missing = []
        for start in range(0, nbytes, self._part_bytes):
            size = min(self._part_bytes, nbytes - start)
            part = (path, start)
            held = self._held.pop(part, 0)
            self._held_bytes -= held
            if held < size:
                missing.append(size - held)
            self._held[part] = max(size, held)
            self._held_bytes += self._held[part]
            while self._held_bytes > capacity_bytes and self._held:
                self._held_bytes -= self._held.popitem(last=False)[1]
        return missing
