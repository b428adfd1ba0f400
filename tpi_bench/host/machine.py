"""This machine: its cores, and where a row comes from (commit, host, versions)."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

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
    root = Path(__file__).resolve().parents[2]
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "tpi_bench", "baselines", "conf")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().split("\n"):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
