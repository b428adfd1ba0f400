"""Memory of processes: areas for weights, the peak of this process, and what devices share.

Linux keeps a high-water mark only of the sum of anonymous and file-backed pages, so a thread reads
/proc/self/status every 20 ms (about 30 microseconds each) and the device also asks at moments of
known peaks. Elsewhere psutil's resident set stands in for anonymous memory and the file part is
NaN.

Of the proportional set size, pages that several processes share count in parts, so the sum over
devices is what they take together. The kernel walks all pages of a process for it, some
milliseconds a look; the launcher looks so seldom that it takes half a percent of one core at most.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

_SAMPLE_S = 0.02
_HUGE_PAGE = 2 << 20
_LOOK_S = 0.5
_COST_FACTOR = 200
# Of mallopt in glibc: what is free at the heap's end goes back beyond the one, and what is larger
# than the other is asked of the system by itself.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 512 << 20


@dataclass
class MemoryPeak:
    """Bytes. `start_anon_bytes` is what the interpreter and its libraries took before the run."""

    start_anon_bytes: float = 0
    peak_anon_bytes: float = 0
    peak_file_bytes: float = 0


class MemorySampler:
    """Samples from construction until `stop`."""

    def __init__(self) -> None:
        anon, file = resident_bytes()
        self.peak = MemoryPeak(anon, anon, file)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def sample(self) -> None:
        anon, file = resident_bytes()
        self.peak.peak_anon_bytes = max(self.peak.peak_anon_bytes, anon)
        self.peak.peak_file_bytes = max(self.peak.peak_file_bytes, file)

    def stop(self) -> MemoryPeak:
        self._stopping.set()
        self._thread.join()
        self.sample()
        return self.peak

    def _run(self) -> None:
        while not self._stopping.wait(_SAMPLE_S):
            self.sample()


def anonymous_area(nbytes: int) -> np.ndarray:
    """Private memory of `nbytes` (uint8) that begins a huge page and is whole ones; not touched.

    Direct reads into huge pages were 2.6 times as fast as into small ones on a virtual disk, and a
    small window fits none by luck. Below half a huge page, small pages do. Raises MemoryError.
    """
    is_huge = nbytes >= _HUGE_PAGE // 2 and hasattr(mmap, "MADV_HUGEPAGE")
    whole = (-(-nbytes // _HUGE_PAGE) + 1) * _HUGE_PAGE if is_huge else max(nbytes, mmap.PAGESIZE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        area = mmap.mmap(-1, whole, flags=flags)
    except OSError as error:
        raise MemoryError(f"{whole / 1e6:.4g} MB could not be had") from error
    if is_huge:
        area.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(area, dtype=np.uint8)
    start = -data.ctypes.data % _HUGE_PAGE if is_huge else 0
    return data[start : start + nbytes]


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it asks for next; whether that can be had.

    glibc gives large pieces back to the system and asks for them again, whose pages are then made
    anew: with the activations of each layer that was a fifth of the time of a prompt of 200 tokens.
    What is free after a peak remains with the process. What is free already goes back before, so
    that what it grows by is what it asks for.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    trim(0)
    return all(mallopt(what, _KEPT_BYTES) for what in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))


def resident_bytes() -> tuple[float, float]:
    """(anonymous, file-backed and shared) resident bytes of this process."""
    if sys.platform != "linux":
        return psutil.Process().memory_info().rss, math.nan
    anon, file, shared = status_bytes("RssAnon", "RssFile", "RssShmem")
    return anon, file + shared


def status_bytes(*names: str) -> list[int]:
    """Sizes of this process by their names in /proc/self/status. Linux only."""
    values = dict.fromkeys(names, 0)
    with open("/proc/self/status") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in values:
                values[name] = int(rest.split()[0]) * 1024
    return list(values.values())


class PssSampler:
    """Peaks by rank, in bytes. `interval_s` is the longest time planned between two looks."""

    def __init__(self) -> None:
        self.peaks: dict[int, float] = {}
        self.interval_s = _LOOK_S
        self._next_s = time.monotonic() + _LOOK_S

    def due_in_s(self) -> float:
        return max(0.0, self._next_s - time.monotonic())

    def sample(self, pids: Mapping[int, int]) -> None:
        """Look at the processes, if it is time."""
        if self.due_in_s() > 0:
            return
        start = time.thread_time()
        for rank, pid in pids.items():
            self.note(rank, pss_bytes(pid))
        cost_s = time.thread_time() - start
        interval_s = max(_LOOK_S, _COST_FACTOR * cost_s)
        self.interval_s = max(self.interval_s, interval_s)
        self._next_s = time.monotonic() + interval_s

    def note(self, rank: int, nbytes: float) -> None:
        """A look at a device, its own included."""
        if not math.isnan(nbytes):
            self.peaks[rank] = max(self.peaks.get(rank, 0.0), nbytes)


def pss_bytes(pid: int | str) -> float:
    """Of a process, or "self"; NaN where the system does not tell, or it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return math.nan
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024.0
    return math.nan
