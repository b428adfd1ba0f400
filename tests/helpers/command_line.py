"""Run the program as a user or a script does, for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cache_dir: Path, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tpi_bench", *arguments, f"cache_dir={cache_dir}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, **kwargs)


def sweep(*arguments: str, cache_dir: Path, tmp_path: Path) -> Path:
    """The results folder of a sweep whose points all have answers."""
    done = run(
        "-m",
        "task=measure",
        "name=sweep",
        *arguments,
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "sweep").iterdir()
    return folder


def report_of(done: subprocess.CompletedProcess) -> dict:
    return json.loads(done.stdout.strip().split("\n")[-1])
