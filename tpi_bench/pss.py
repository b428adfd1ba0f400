"""Proportional set size of the devices, looked at by the launcher while they run.

Pages that several processes share count in parts, so the sum over devices is what they take
together. The kernel walks all pages of a process for it, some milliseconds a look; looks are so
far apart that they take half a percent of one core at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

_INTERVAL_S = 0.5
_COST_FACTOR = 200


class PssSampler:
    """Peaks by rank, in bytes. `interval_s` is the longest time planned between two looks."""

    def __init__(self) -> None:
        self.peaks: dict[int, float] = {}
        self.interval_s = _INTERVAL_S
        self._next_s = time.monotonic() + _INTERVAL_S

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
        interval_s = max(_INTERVAL_S, _COST_FACTOR * cost_s)
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
