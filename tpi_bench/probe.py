"""What this host can do right now: memory and disk bandwidth, the limits speeds are held against.

Measured in a process of its own right before a point, because shared hosts drift from minute to
minute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tpi_bench.weights import BlockFile

_MEMORY_BYTES = 96 << 20
_DISK_BYTES = 192 << 20
_DISK_BUFFER_BYTES = 64 << 20
_DISK_THREADS = 16  # as many requests in flight as four devices make
_MEMORY_PASSES = 3
_DISK_PASSES = 6  # shared disks vary: the best pass is the limit


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """Bytes per second; `disk_bps` is NaN when no file was to be read."""

    memory_bps: float
    disk_bps: float

    def best(self, other: HostLimits) -> HostLimits:
        """The larger of each: what the host was seen to do."""
        return HostLimits(
            memory_bps=max(self.memory_bps, other.memory_bps),
            disk_bps=max(self.disk_bps, other.disk_bps),
        )


def measure_limits(num_threads: int, blocks: list[BlockFile]) -> HostLimits:
    """Best of a few passes over memory (`num_threads` threads) and over the point's own files."""
    import torch

    torch.set_num_threads(num_threads)
    data = torch.ones(_MEMORY_BYTES // 4)
    rows = data.view(8, -1, 1024)
    column = torch.ones(8, 1024, 1)
    best = 0.0
    for _ in range(_MEMORY_PASSES):
        for touch in (data.sum, lambda: torch.bmm(rows, column)):
            start = time.monotonic()
            touch()
            best = max(best, data.nbytes / (time.monotonic() - start))
    return HostLimits(memory_bps=best, disk_bps=_disk_bandwidth(blocks))


def _disk_bandwidth(blocks: list[BlockFile]) -> float:
    """Best of a few passes over the files, all queued at once, into touched memory."""
    from tpi_bench.disk import DirectReader
    from tpi_bench.memory import anonymous_area

    chosen: list[BlockFile] = []
    for block in blocks:
        if sum(b.nbytes for b in chosen) < _DISK_BYTES and Path(block.path).is_file():
            chosen.append(block)
    if not chosen:
        return float("nan")
    size = max(_DISK_BUFFER_BYTES, *(block.nbytes for block in chosen))
    buffer = anonymous_area(size)
    buffer.fill(0)
    reader = DirectReader(_DISK_THREADS)
    best = 0.0
    try:
        reader.open(chosen)
        for _ in range(_DISK_PASSES):
            start = time.monotonic()
            pending, position = [], 0
            for block in chosen:  # what is read is not used, so blocks may overwrite each other
                position = position if position + block.nbytes <= size else 0
                target = buffer[position : position + block.nbytes]
                pending.append(reader.read(block, target, lambda start, end: None))
                position += block.nbytes
            for read in pending:
                read.wait()
            best = max(best, sum(b.nbytes for b in chosen) / (time.monotonic() - start))
    finally:
        reader.close()
    return best


def last_level_cache_bytes() -> int:
    """Size of the largest CPU cache, 0 where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM") or 0) * scale)
    return max(sizes, default=0)
