"""Measured points of two programs on one host: one waits or is refused; virtual ones do not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from tests.helpers.command_line import ROOT, report_of, run
from tpi_bench.host.locks import Lock
from tpi_bench.measure import turns
from tpi_bench.report.failure import error_report
from tpi_bench.report.json_keys import COMMON, SWEEP

LARGE = ["model.num_layers=24", "model.hidden=480", "model.intermediate=2048"]
MEASURED = ["model=debug", "workload.prompt_ids=[1,2]", "workload.num_new_tokens=2"]


@pytest.fixture
def other_measurement() -> Iterator[Lock]:
    """As if this process measured on this host."""
    folder = platformdirs.user_runtime_path("tpi_bench", ensure_exists=True)
    lock = Lock(folder / "now.lock")
    assert lock.take()
    yield lock
    lock.give_back()


def test_who_shall_not_wait_is_refused(
    other_measurement: Lock, cache_dir: Path, tmp_path: Path
) -> None:
    """In a sweep and alone: a refusal is no row."""
    for own, more in (
        (error_report("", ""), ["task=generate"]),
        (SWEEP, ["-m", "task=measure", "repeat=0,1", f"results_dir={tmp_path}"]),
    ):
        done = run(*more, *MEASURED, "wait=false", "report=json", cache_dir=cache_dir)
        assert done.returncode == 1
        report = report_of(done)
        assert report["error"].startswith(f"this host is measured by process {os.getpid()} (")
        assert report["exit_reason"] == "busy"
        assert report.keys() == (COMMON | own).keys()
    assert not list(tmp_path.rglob("points/*.json"))


def test_who_waits_for_seconds_is_refused_then(other_measurement: Lock, cache_dir: Path) -> None:
    begun = time.monotonic()
    done = run(*MEASURED, "wait=0.5", cache_dir=cache_dir)
    assert time.monotonic() - begun > 0.5
    assert done.returncode == 1
    said, error = done.stderr.splitlines()
    assert said.startswith(f"waiting for process {os.getpid()} (")
    assert error.startswith(f"error: this host is measured by process {os.getpid()} (")
    assert "(waited 0.5 s); try again later" in error


def test_virtual_points_wait_for_nobody(other_measurement: Lock, cache_dir: Path) -> None:
    virtual = ["testbed=virtual", "model=debug", "workload.prompt_tokens=2", "wait=false"]
    assert run(*virtual, cache_dir=cache_dir).returncode == 0


def test_who_waits_says_for_whom_and_goes_on(other_measurement: Lock, cache_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tpi_bench", *MEASURED, "verbosity=debug", f"cache_dir={cache_dir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith(f"waiting for process {os.getpid()} (")
    assert "which measures on this host" in line
    assert process.poll() is None
    other_measurement.give_back()
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "token latency" in out
    assert "running the point took " in errors
    assert "probing the host again took " in errors


def test_a_process_that_is_waited_for_again_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sweep has its turn point by point."""
    for pid, since in ((-7, "09:00"), (-7, "09:01"), (-8, "09:02")):
        turns._tell_of(f"process {pid} (python x.py), since 2026-01-01 {since}")
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(", which measures")[0] for line in said] == [
        "waiting for process -7 (python x.py)",
        "waiting for process -8 (python x.py)",
    ]


def test_a_row_of_a_mistake_waits_for_nobody(
    other_measurement: Lock, cache_dir: Path, tmp_path: Path
) -> None:
    """In a sweep: what the model is too small for is known without the host."""
    done = run(
        *("-m", "task=measure", *MEASURED, "testbed.num_devices=64,65", "wait=false"),
        f"output_dir={tmp_path / 'out'}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("error: testbed.num_devices=6") >= 2
    assert "this host is measured by" not in done.stderr


@pytest.mark.parametrize(
    ("mistake", "status", "line"),
    [
        (["network=wifi"], 2, "exists in virtual time only"),
        (["model=hf", "model.path=/nowhere"], 2, "model folder /nowhere does not exist"),
        ([*LARGE, "device.memory_mb=200"], 3, "device.memory_mb=200 is too little for device 0"),
        (["workload.prompt_ids=[100000]"], 2, "100000"),
        (["task=chat", "system=transformers"], 2, "task=chat with system=transformers"),
    ],
)
def test_a_mistake_is_told_without_waiting(
    mistake: list[str], status: int, line: str, other_measurement: Lock, cache_dir: Path
) -> None:
    done = run(*MEASURED, *mistake, "wait=false", cache_dir=cache_dir)
    assert done.returncode == status, done.stderr
    assert line in done.stderr
    assert "this host is measured by" not in done.stderr


def test_programs_with_other_folders_for_scratch_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As jobs of a CI, where the system has no folder for what runs."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    folders = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        monkeypatch.setattr(tempfile, "tempdir", None)
        folders.append(turns._runtime_folder())
        assert tempfile.gettempdir() == str(tmp_path / name)
    assert folders[0] == folders[1]
    assert tmp_path not in folders[0].parents
