"""Run the program as a user or a script does, for tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from tpi_bench.app.main import main

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cache_dir: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """What is typed behind `python -m tpi_bench`.

    In this process, where the interpreter that devices are forked from has loaded torch already;
    with `kwargs`, those of `subprocess.run`, in a process of its own.
    """
    given = [*arguments, f"cache_dir={cache_dir}"]
    if not kwargs:
        return run_here(main, given)
    command = [sys.executable, "-m", "tpi_bench", *given]
    return subprocess.run(
        command, **({"capture_output": True, "text": True, "cwd": ROOT, "timeout": 120} | kwargs)
    )


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What is typed behind `python -m`, in this process."""
    sys.modules.pop(module, None)  # else runpy warns that it is there
    return run_here(lambda: runpy.run_module(module, run_name="__main__"), list(arguments))


def run_here(
    program: Callable[[], object], arguments: list[str]
) -> subprocess.CompletedProcess[str]:
    """What a program says, and its exit status. Devices and helpers write elsewhere."""
    out, errors, status = io.StringIO(), io.StringIO(), 0
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors)
    with _as_a_process(arguments), streams[0], streams[1]:
        try:
            program()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())


@contextlib.contextmanager
def _as_a_process(arguments: list[str]) -> Iterator[None]:
    """Arguments, working directory and signals of a program; afterwards as they were."""
    before, argv, environment = Path.cwd(), sys.argv, dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    sys.argv = ["tpi_bench", *arguments]
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        GlobalHydra.instance().clear()


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


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout.strip().split("\n")[-1])
