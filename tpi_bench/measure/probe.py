"""What this host can do: passes over memory and disk, for limits and for calibration.

A point's limits are measured in processes of their own, before it and after it, because shared
hosts drift from minute to minute: the best that was seen counts, and how busy the host was is told.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tpi_bench.contract.blocks import PAGE, Extent
from tpi_bench.host.machine import OthersLoad
from tpi_bench.measure.round_trip import raw_round_trip_s

if TYPE_CHECKING:
    import numpy as np

    from tpi_bench.host.disk import DirectReader

_MEMORY_BYTES = 256 << 20  # where nobody says how many
_MOST_MEMORY_BYTES = 512 << 20
_MEMORY_SHARE = 4  # of what is available, so much is left to others
_DISK_BYTES = 192 << 20
_DISK_BUFFER_BYTES = 64 << 20
_DISK_THREADS = 16  # as many requests in flight as four devices make
_MEMORY_PASSES = 3
_COLS = 2 * PAGE // 4  # of memory as rows of float32
_DISK_PASSES = 3  # shared disks vary: the best pass is the limit


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """Bytes per second and seconds.

    `disk_bps` is NaN when no file was to be read, `round_trip_s` when no message was to be sent.
    Rates are those of the best pass; `spread` is how far below it the middle one was, as a share,
    of memory or disk. `busy_cores` is what others took of the host meanwhile. `by_device` are those
    of devices on several machines, of which the slowest stands for all.
    """

    memory_bps: float
    disk_bps: float
    round_trip_s: float = math.nan
    spread: float = 0.0
    busy_cores: float = 0.0
    by_device: tuple[HostLimits, ...] = ()

    def best(self, other: HostLimits) -> HostLimits:
        """The better of each: what the host was seen to do, and when it was least busy."""
        return HostLimits(
            memory_bps=max(self.memory_bps, other.memory_bps),
            disk_bps=max(self.disk_bps, other.disk_bps),
            round_trip_s=min(self.round_trip_s, other.round_trip_s),
            spread=max(self.spread, other.spread),
            busy_cores=min(self.busy_cores, other.busy_cores),
            by_device=tuple(
                a.best(b) for a, b in zip(self.by_device, other.by_device, strict=True)
            ),
        )

    @classmethod
    def of_devices(cls, found: Sequence[HostLimits]) -> HostLimits:
        """Of several machines together."""
        return cls(
            memory_bps=min(each.memory_bps for each in found),
            disk_bps=min(each.disk_bps for each in found),
            spread=max(each.spread for each in found),
            busy_cores=max(each.busy_cores for each in found),
            by_device=tuple(found),
        )


def measure_limits(
    num_threads: int,
    extents: Sequence[Extent],
    message_bytes: int | None = None,
    touched_bytes: int = _MEMORY_BYTES,
) -> HostLimits:
    """Best of a few passes over memory and over the point's own files, and a typical round trip.

    `num_threads` threads read memory of the kind that weights lie in, again and again, and as much
    of it as a token touches: so what the CPU's caches keep of that is in the rate.
    """
    import torch

    from tpi_bench.engine.matrix import Matrix
    from tpi_bench.host.memory import anonymous_area

    torch.set_num_threads(num_threads)
    most = min(_MOST_MEMORY_BYTES, psutil.virtual_memory().available // _MEMORY_SHARE)
    nbytes = min(touched_bytes, most) // (4 * _COLS) * 4 * _COLS
    data = torch.from_numpy(anonymous_area(nbytes)).view(torch.float32)
    data.fill_(1.0)
    rows, vector = Matrix(data.view(-1, _COLS)), torch.ones(1, _COLS)
    touches = (data.sum, data.view(torch.float64).sum, lambda: rows(vector))
    load = OthersLoad()
    passes = [seconds(touch) for _ in range(_MEMORY_PASSES) for touch in touches]
    # Each way of touching by itself: they are not equally fast.
    ways = [passes[number :: len(touches)] for number in range(len(touches))]
    memory_spread = min(_spread(way) for way in ways)
    disk = disk_passes(extents)
    busy = load.cores()
    return HostLimits(
        memory_bps=data.nbytes / min(passes),
        disk_bps=disk.best_bps,
        round_trip_s=math.nan if message_bytes is None else raw_round_trip_s(message_bytes),
        spread=max(memory_spread, disk.spread),
        busy_cores=busy,
    )


def _spread(times_s: Sequence[float]) -> float:
    """How far below the best rate the middle one is."""
    return 1 - min(times_s) / statistics.median(times_s)


def seconds(fn: Callable[[], object]) -> float:
    """What one call takes."""
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def read_all(reader: DirectReader, extents: Sequence[Extent], buffer: np.ndarray) -> None:
    """Read all extents, queued at once. What is read is not used: they may overwrite each other."""
    pending, position = [], 0
    for extent in extents:
        position = position if position + extent.nbytes <= buffer.nbytes else 0
        target = buffer[position : position + extent.nbytes]
        pending.append(reader.read(extent, target, lambda start, end: None))
        position += extent.nbytes
    for read in pending:
        read.wait()


class DiskPasses(NamedTuple):
    """Seconds of each pass over so many bytes of a disk; none where no file is there."""

    nbytes: int
    taken_s: list[float]

    @property
    def best_bps(self) -> float:
        """NaN where there was none, as of the others."""
        return self.nbytes / min(self.taken_s) if self.taken_s else math.nan

    @property
    def mean_bps(self) -> float:
        return self.nbytes / statistics.fmean(self.taken_s) if self.taken_s else math.nan

    @property
    def spread(self) -> float:
        """How far below the best rate the middle one is; 0 where there was none."""
        return _spread(self.taken_s) if self.taken_s else 0.0


def disk_passes(extents: Sequence[Extent], go_on_s: float = 0.0) -> DiskPasses:
    """A few passes over the files, all queued at once, into touched memory, and more of them until
    so much time has gone.
    """
    from tpi_bench.host.disk import DirectReader
    from tpi_bench.host.memory import anonymous_area

    chosen: list[Extent] = []
    for extent in extents:
        if sum(e.nbytes for e in chosen) < _DISK_BYTES and Path(extent.path).is_file():
            chosen.append(extent)
    nbytes = sum(extent.nbytes for extent in chosen)
    if not chosen:
        return DiskPasses(0, [])
    buffer = anonymous_area(max(_DISK_BUFFER_BYTES, *(extent.nbytes for extent in chosen)))
    buffer.fill(0)
    reader = DirectReader(_DISK_THREADS)
    try:
        reader.open(extent.path for extent in chosen)
        passes: list[float] = []
        while len(passes) < _DISK_PASSES or sum(passes) < go_on_s:
            passes.append(seconds(lambda: read_all(reader, chosen, buffer)))
    finally:
        reader.close()
    return DiskPasses(nbytes, passes)
