"""This machine: its cores, who keeps them busy, and where a row comes from (commit, versions)."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tpi_bench.host import cache

_LIBRARIES = ("torch", "transformers", "safetensors", "numpy")


def available_cpus() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def share_cores(num_threads: int) -> bool:
    """Whether so many threads are more than the cores that this process may use."""
    return num_threads > len(available_cpus())


class OthersLoad:
    """How many cores other processes keep busy, from its making to each question.

    Counted is what a virtual machine is deprived of as well (`steal`), not what waits for a disk.
    """

    def __init__(self) -> None:
        self._start_s, self._start_busy_s = time.monotonic(), _busy_s()
        self._start_own_s = time.process_time()

    def cores(self) -> float:
        """Of the whole host, apart from this process."""
        own_s = time.process_time() - self._start_own_s
        others_s = _busy_s() - self._start_busy_s - own_s
        return max(0.0, others_s / max(1e-3, time.monotonic() - self._start_s))


def busy_cores(interval_s: float) -> float:
    """Cores that others keep busy, over a moment in which this process sleeps."""
    load = OthersLoad()
    time.sleep(interval_s)
    return load.cores()


@dataclass(frozen=True)
class HostState:
    """This host at a moment: who is busy on it, and how fast its cores run.

    `steal_s` is the CPU time, of all cores since the start of the host, that a virtual machine
    wanted and others of its machine got; NaN where the system does not count it. `clock_mhz` is NaN
    where it is not told.
    """

    time_s: float
    busy_cores: float
    steal_s: float
    clock_mhz: float

    @classmethod
    def look(cls, interval_s: float) -> HostState:
        """Takes the interval, in which this process sleeps."""
        busy = busy_cores(interval_s)
        steal_s = getattr(psutil.cpu_times(), "steal", math.nan)
        return cls(time.monotonic(), busy, steal_s, _clock_mhz())

    def stolen_share(self, later: HostState) -> float:
        """The share of all cores' time from this moment to a later one that others got."""
        cores = os.cpu_count() or 1
        return (later.steal_s - self.steal_s) / max(1e-3, cores * (later.time_s - self.time_s))


def _clock_mhz() -> float:
    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, OSError, NotImplementedError):  # not every platform has it
        return math.nan
    return math.nan if frequency is None else float(frequency.current)


def _busy_s() -> float:
    """CPU time of all cores since the start of the host."""
    times = psutil.cpu_times()._asdict()
    idle = times.get("idle", 0.0) + times.get("iowait", 0.0)
    within = times.get("guest", 0.0) + times.get("guest_nice", 0.0)  # counted in user and nice
    return sum(times.values()) - idle - within


@functools.lru_cache
def provenance() -> dict[str, Any]:
    """Columns every row carries."""
    return {
        "commit": _commit(),
        "host": platform.node(),
        "cpu": _cpu_name(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{f"{name}_version": _version(name) for name in _LIBRARIES},
    }


def host_key() -> str:
    """Names this host by what its speed depends on: processor, cores, library versions."""
    facts = provenance()
    names = ("cpu", "python", "torch_version")
    return cache.digest([os.cpu_count(), *(facts[name] for name in names)])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """Of the clone; where the package is installed, which a clone may lie around, its version."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"tpi_bench {_version('tpi_bench')}"
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "tpi_bench", "baselines", "conf")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    """Without the lock on the clone's index, which others may want meanwhile."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().split("\n"):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
