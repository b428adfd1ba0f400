"""Nothing that was measured is lost: finished folders, folders in use, resuming, full disks."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.helpers.command_line import ROOT, report_of, run
from tests.report.test_rows import RUN
from tpi_bench.app.place import ResultsPlace, open_place
from tpi_bench.host.locks import Lock
from tpi_bench.measure import attempt, point
from tpi_bench.measure.prepare import Prepared
from tpi_bench.report.folder import CannotWrite, ResultsFolder
from tpi_bench.report.json_keys import COMMON, SWEEP
from tpi_bench.report.rows import Record

VIRTUAL = [
    "task=measure",
    "testbed=virtual",
    "model=debug",
    "testbed.num_devices=2",
    "workload.prompt_tokens=3",
]


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time."""
    found = [path for path in folder.rglob("*") if path.is_file() and ".in_use" not in path.name]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


def test_a_finished_folder_is_never_written_into(cache_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fig_latency"
    shutil.copytree(ROOT / "results" / "fig_latency", folder)
    before = state_of(folder)
    num_points = len(pd.read_parquet(folder / "runs.parquet"))
    for given in (f"resume={folder}", f"output_dir={folder}"):
        more = [] if given.startswith("resume") else ["-m", *VIRTUAL]
        done = run(*more, given, "report=json", cache_dir=cache_dir)
        assert done.returncode == 2
        message = (
            f"{given}: it is finished ({num_points} points) and is never written into; draw it "
            f"again with: python -m experiments.fig_latency {folder}; measure it anew with: "
            "python -m tpi_bench +experiment=fig_latency repeat=0,1,2,3,4"
        )
        assert done.stderr == f"error: {message}\n"
        assert report_of(done)["error"] == message
        assert report_of(done)["exit_reason"] == "usage"
    assert state_of(folder) == before


def test_a_finished_folder_of_one_point_says_so(tmp_path: Path) -> None:
    results = ResultsFolder(tmp_path)
    results.create()
    results.save(Record(run=RUN))
    results.write_tables()
    shutil.rmtree(tmp_path / "points")
    with pytest.raises(ValueError, match=r"it is finished \(1 point\) and is never written into"):
        open_place(tmp_path, [], None)


def test_a_sweep_is_locked_and_taken_up_as_it_was(cache_dir: Path, tmp_path: Path) -> None:
    """In a folder that was given, saying nothing but its table; then in use; then gone on with."""
    folder = tmp_path / "given"
    sweep = [*VIRTUAL, "model.dtype=float32,bfloat16", "device.memory_mb=0.1,10"]
    done = run("-m", *sweep, f"output_dir={folder}", "verbosity=quiet", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    head, *lines = (line.split() for line in done.stdout.strip().split("\n"))
    assert head[:3] == ["model.dtype", "device.memory_mb", "status"]
    assert [line[:3] for line in lines] == [
        [dtype, memory, status]
        for dtype in ("float32", "bfloat16")
        for memory, status in (("0.1", "oom"), ("10", "ok"))
    ]
    assert all(line.startswith("without a result: ") for line in done.stderr.splitlines())
    assert done.stderr.count("result: model.dtype=float32 device.memory_mb=0.1: oom: ") == 1
    runs = pd.read_parquet(folder / "runs.parquet")
    assert "model.dtype=bfloat16" in runs.overrides[3]
    assert "output_dir" not in runs.overrides[3]
    before = state_of(folder / "points")

    lock = Lock(ResultsFolder(folder).lock_path)
    assert lock.take()
    try:
        done = run(f"resume={folder}", cache_dir=cache_dir)
        told = report_of(run(f"resume={folder}", "report=json", cache_dir=cache_dir))
    finally:
        lock.give_back()
    assert told.keys() == (COMMON | SWEEP).keys()
    assert (told["exit_reason"], told["points"]) == ("busy", 0)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the results folder {folder} is in use by process ")
    assert f"process {os.getpid()} (" in done.stderr
    assert done.stderr.count("\n") == 1

    free = ["timeout_s=600", "report=json", "verbosity=normal"]
    done = run(f"resume={folder}", *free, cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    kept = "4 points are done and are not run again, among them 2 out of memory"
    said = done.stderr.splitlines()
    assert len([line for line in said if line.startswith(kept)]) == 1
    assert not [line for line in said if re.match(r"\[\d/4\]", line)]  # none a point
    assert report_of(done).keys() == (COMMON | SWEEP).keys() - {"error"}
    assert report_of(done) == {
        "status": "ok",
        "exit_reason": "ok",
        "text": None,
        "points": 4,
        "failed": 2,
        "left_out": 0,
        "ok": 2,
        "oom": 2,
        "timeout": 0,
        "results": str(folder),
    }
    assert state_of(folder / "points") == before
    assert "report=json" not in ResultsFolder(folder).arguments

    done = run("-m", *sweep, f"output_dir={folder}", cache_dir=cache_dir)
    assert done.returncode == 2
    assert f"an experiment was begun there; go on with resume={folder}" in done.stderr


def test_a_single_point_is_taken_up_too(cache_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    bound = "timeout_s=0.000001"
    done = run(*VIRTUAL, f"output_dir={folder}", bound, "report=json", cache_dir=cache_dir)
    assert done.returncode == 4, done.stderr
    assert report_of(done)["exit_reason"] == "timeout"
    (file,) = (folder / "points").glob("*.json")
    first = file.read_text()

    again = run(f"resume={folder}", "report=json", cache_dir=cache_dir)
    assert again.returncode == 4
    assert "done already, and not run again" in again.stderr
    assert file.read_text() == first

    longer = run(f"resume={folder}", "timeout_s=600", "report=json", cache_dir=cache_dir)
    assert longer.returncode == 0, longer.stderr
    assert report_of(longer)["results"] == str(folder)
    assert json.loads(file.read_text())["run"]["status"] == "ok"
    assert pd.read_csv(folder / "runs.csv").status.tolist() == ["ok"]


def test_a_sweep_of_which_all_fails_has_its_table(cache_dir: Path, tmp_path: Path) -> None:
    """With the module of a figure, too."""
    done = run(
        "-m",
        *VIRTUAL,
        "testbed.num_devices=20,30",
        "figure=experiments.fig_scaling",
        f"results_dir={tmp_path}",
        "report=json",
        cache_dir=cache_dir,
    )
    assert done.returncode == 5
    told = [line.split() for line in done.stderr.split("\n")]  # the object has stdout for itself
    head = next(i for i, line in enumerate(told) if line[:1] == ["testbed.num_devices"])
    assert [line[:2] for line in told[head + 1 : head + 3]] == [["20", "error"], ["30", "error"]]
    report = json.loads(done.stdout)
    assert (report["exit_reason"], report["failed"]) == ("points_failed", 2)
    assert "[1/2] testbed.num_devices=20: error: " in done.stderr


def test_a_sweep_of_which_nothing_fits_has_no_answer(cache_dir: Path, tmp_path: Path) -> None:
    """Where some do, that others do not is one."""
    sweep = ["-m", *VIRTUAL, "report=json", f"results_dir={tmp_path}"]
    done = run(*sweep, "device.memory_mb=0.1,0.2", cache_dir=cache_dir)
    report = report_of(done)
    assert done.returncode == 5
    assert (report["exit_reason"], report["ok"], report["oom"]) == ("points_failed", 0, 2)
    assert report["error"].startswith("none of 2 points has a result: ")
    assert report["error"] in done.stderr
    assert "failed: " not in done.stderr


@pytest.mark.parametrize(("done_before", "rows"), [(2, (3, 1)), (0, (0, 0))])
def test_a_sweep_that_is_stopped_says_which_rows_there_are(
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    done_before: int,
    rows: tuple[int, int],
) -> None:
    """To a script, too; Ctrl-C comes while the third point runs, or the first. The refused point
    has a row.
    """
    measured: list[object] = []

    def measure(prepared: Prepared, **others: Any) -> Record:
        if len(measured) == done_before:
            raise KeyboardInterrupt
        measured.append(prepared)
        return of_a_point(prepared, **others)

    of_a_point = point.measure
    monkeypatch.setattr(attempt, "measure", measure)
    folder = tmp_path / "out"
    sweep = ["-m", *VIRTUAL, "testbed.num_devices=1,20,2,3", f"output_dir={folder}", "report=json"]
    done = run(*sweep, "testbed.cost=measured", cache_dir=cache_dir)  # no workers
    assert done.returncode == 130
    assert done.stderr.endswith(f"stopped; go on with: python -m tpi_bench resume={folder}\n")
    report = report_of(done)
    assert (report["exit_reason"], report["results"]) == ("stopped", str(folder))
    assert (report["points"], report["failed"]) == rows
    assert (report["ok"], report["oom"], report["left_out"]) == (done_before, 0, 0)
    assert report.keys() == (COMMON | SWEEP).keys()
    assert len(ResultsFolder(folder).records()) == rows[0]


def test_a_sweep_with_failed_points_says_how_many_and_why(cache_dir: Path, tmp_path: Path) -> None:
    sweep = ["-m", *VIRTUAL, "report=json", f"results_dir={tmp_path}", "verbosity=quiet"]
    done = run(*sweep, "testbed.num_devices=2,20", cache_dir=cache_dir)
    report = report_of(done)
    assert (done.returncode, report["exit_reason"]) == (5, "points_failed")
    assert report["error"].startswith("1 of 2 points failed: testbed.num_devices=20")
    assert f"error: {report['error']}\n" in done.stderr
    assert report.keys() == (COMMON | SWEEP).keys()


@pytest.mark.parametrize("more", [["-m"], []])
@pytest.mark.parametrize("given", ["output_dir={}", "output_dir={}/x", "results_dir={}"])
def test_a_file_where_the_folder_would_be_is_named(
    given: str, more: list[str], cache_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "afile"
    file.touch()
    done = run(*more, *VIRTUAL, given.format(file), cache_dir=cache_dir)
    assert done.returncode == 2
    assert f": {file} is a file; give another folder with output_dir=DIR" in done.stderr
    assert done.stderr.count("\n") == 1


# In one process.


def stored(tmp_path: Path, *arguments: str) -> Path:
    folder = ResultsFolder(tmp_path / "begun")
    folder.create()
    folder.keep_arguments(arguments)
    return folder.folder


def test_what_changes_no_point_may_differ(tmp_path: Path) -> None:
    folder = stored(tmp_path, "-m", "timeout_s=5", "system=tpi,galaxy")
    typed = ["report=json", "timeout_s=9", f"resume={folder}", "system=tpi,galaxy"]
    assert ResultsPlace().with_stored(typed) == [
        "-m",
        "timeout_s=5",
        "system=tpi,galaxy",
        "report=json",
        "timeout_s=9",
        f"resume={folder}",
    ]


def test_what_makes_other_points_may_not(tmp_path: Path) -> None:
    folder = stored(tmp_path, "-m", "system=tpi,galaxy")
    with pytest.raises(ValueError, match=r"was made with -m system=tpi,galaxy, not with system=x;"):
        ResultsPlace().with_stored([f"resume={folder}", "system=x"])


def test_a_folder_without_a_row_is_as_good_as_new(tmp_path: Path) -> None:
    """What was refused at its first point can be typed again, better, with the same folder."""
    folder = ResultsFolder(tmp_path / "out")
    for arguments in (["-m", "system=tpi"], ["-m", "system=galaxy"]):
        open_place(folder.folder, arguments, None).give_back()
        assert folder.arguments == arguments
    open_place(folder.folder, ["-m", "report=json"], str(folder.folder)).give_back()
    assert folder.arguments == ["-m", "system=galaxy"]
    folder.save(Record(run=RUN))
    with pytest.raises(ValueError, match=r"an experiment was begun there; go on with resume="):
        open_place(folder.folder, [], None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"it is not empty; give a new folder"):
        open_place(tmp_path / "other", [], None)


# A full disk.


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored(tmp_path, "-m")
    ResultsFolder(folder).save(Record(run=RUN))

    def full(*arguments: object, **kwargs: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    advice = f"No space left on device; free some space there, then go on with: .* resume={folder}"
    with pytest.raises(CannotWrite, match=rf"results folder {folder}: {advice}"):
        ResultsFolder(folder).save(Record(run=RUN))
    assert not list(folder.rglob("*.tmp*"))


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode != 0,
    reason="no mount of our own can be made here",
)
def test_a_disk_that_fills_up_ends_a_sweep_with_one_line(cache_dir: Path, tmp_path: Path) -> None:
    """On a disk of 64 KB, where the first rows fit; what is there can be gone on with."""
    command = [sys.executable, "-m", "tpi_bench", "-m", *VIRTUAL, f"cache_dir={cache_dir}"]
    command += ["workload.seed=1,2,3,4,5,6,7,8", f"output_dir={tmp_path}/out", "progress=false"]
    script = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: cannot write to the results folder {tmp_path}/out: No space left on device; free "
        "some space there, then go on with: python -m tpi_bench resume="
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("limit_kb", "kinds"),
    [
        pytest.param(8, [], marks=pytest.mark.product),
        (30, ["-m", "testbed.num_devices=2,3"]),
    ],
)
def test_what_a_row_or_a_table_is_too_large_for(
    limit_kb: int, kinds: list[str], cache_dir: Path, tmp_path: Path
) -> None:
    """A folder without a row cannot be gone on with; one with all of them is named."""
    folder = tmp_path / "out"
    limit = (limit_kb * 1024, limit_kb * 1024)
    done = run(
        *(*VIRTUAL, *kinds, f"output_dir={folder}", "report=json", "progress=false"),
        cache_dir=cache_dir,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 1
    report = report_of(done)
    assert report["error"].startswith(f"cannot write to the results folder {folder}: ")
    has_rows = limit_kb == 30
    assert report["results"] == (str(folder) if has_rows else None)
    again = f"go on with: python -m tpi_bench resume={folder}"
    assert report["error"].endswith(f"then {again if has_rows else 'run the same command again'}")
    num_rows = (2 if kinds else 1) if has_rows else 0
    assert len(ResultsFolder(folder).records()) == num_rows
    if kinds:
        assert report.keys() == (COMMON | SWEEP).keys()
        assert (report["points"], report["ok"], report["failed"]) == (num_rows, num_rows, 0)
