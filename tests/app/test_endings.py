"""How the program ends, and how much it says: exit statuses, `verbosity=`, `progress=`."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.errors import HydraException
from tqdm import tqdm

from tests.helpers.command_line import ROOT, report_of, run
from tests.report.test_rows import RUN
from tpi_bench.app import tasks
from tpi_bench.app.errors import ExitStatus, status_of_error, status_of_run
from tpi_bench.app.main import main
from tpi_bench.app.notices import BesideBars, set_notices
from tpi_bench.contract.plan import DoesNotFit
from tpi_bench.host.cache import CacheError, bars_hidden
from tpi_bench.host.machine import HostState
from tpi_bench.measure import calibrate
from tpi_bench.measure.turns import HostBusy
from tpi_bench.report.folder import CannotWrite

REFUSED = ["task=measure", "testbed=virtual", "model=debug", "workload.prompt_tokens=3"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("typed"), 2),
        (HydraException("typed"), 2),
        (DoesNotFit("too large"), 3),
        (CacheError("full"), 1),
        (CannotWrite("full"), 1),
        (OSError("gone"), 1),
        (HostBusy("another"), 1),
    ],
)
def test_errors_have_their_exit_status(error: Exception, status: int) -> None:
    assert status_of_error(error) == status


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({}, 0, "ok"),
        ({"status": "oom"}, 3, "out_of_memory"),
        ({"status": "timeout"}, 4, "timeout"),
        ({"status": "device_lost"}, 1, "error"),
        ({"tokens_equal": False, "dtype": "float32"}, 1, "error"),
        ({"tokens_equal": False, "dtype": "bfloat16"}, 0, "ok"),
    ],
)
def test_points_have_their_exit_status(changes: dict, status: int, reason: str) -> None:
    found = status_of_run(replace(RUN, **changes))
    assert (found, found.reason) == (status, reason)


def test_the_other_statuses_have_reasons() -> None:
    others = (ExitStatus.USAGE, ExitStatus.POINTS_FAILED, ExitStatus.STOPPED)
    assert {int(s): s.reason for s in others} == {2: "usage", 5: "points_failed", 130: "stopped"}


def test_a_script_that_stops_it_gets_its_object(cache_dir: Path) -> None:
    command = [sys.executable, "-m", "tpi_bench", "model=debug", "workload.prompt_ids=[1]"]
    process = subprocess.Popen(
        [*command, "workload.num_new_tokens=500", "report=json", f"cache_dir={cache_dir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 20
    while not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    report = report_of(subprocess.CompletedProcess([], 130, out))
    assert (report["status"], report["exit_reason"]) == ("error", "stopped")


@pytest.mark.parametrize("is_shown", [True, pytest.param(False, marks=pytest.mark.product)])
def test_a_bar_on_a_terminal_or_lines(is_shown: bool, cache_dir: Path, tmp_path: Path) -> None:
    given = ["-m", *REFUSED, "testbed.num_devices=20,30", f"cache_dir={cache_dir}"]
    given += [f"progress={str(is_shown).lower()}", f"results_dir={tmp_path}"]
    status, seen = on_a_terminal(*given)
    assert status == 5
    assert (b"2/2 [" in seen) is is_shown
    assert b"point/s" not in seen
    assert (b"[2/2] testbed.num_devices=30: error" in seen) is not is_shown


def test_a_search_on_a_terminal(cache_dir: Path, tmp_path: Path) -> None:
    """Before it has found anything, too."""
    given = ["task=advise", "device=a(4,8,20,0.5)", "model=debug", "system=tpi", "timeout_s=5"]
    status, seen = on_a_terminal(*given, f"cache_dir={cache_dir}", f"results_dir={tmp_path}")
    assert status == 0
    assert b"searching (0 run, 00:0" in seen
    assert b"ms a token at best (" in seen
    assert b"inf" not in seen
    assert b"?" not in seen


def on_a_terminal(*given: str) -> tuple[int, bytes]:
    """The exit status, and what standard error shows there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = subprocess.Popen(
        [sys.executable, "-m", "tpi_bench", *given],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=ROOT,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # it has ended
            break
    os.close(ours)
    return process.wait(timeout=20), seen


def test_a_line_beside_a_bar_begins_where_lines_do() -> None:
    stream = io.StringIO()
    record = logging.makeLogRecord({"msg": "a notice"})
    with tqdm(total=2, file=stream, bar_format="{n}/{total}"):
        BesideBars(stream).emit(record)
    assert "\ra notice\n\r0/2" in stream.getvalue()
    alone = io.StringIO()
    BesideBars(alone).emit(record)
    assert alone.getvalue() == "a notice\n"


def test_helpers_show_no_bars_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And do again for the next run in the same interpreter, unless the user wants none at all."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for verbosity, progress, hidden in [
        ("normal", False, True),
        ("normal", True, None),
        ("quiet", True, True),
        ("debug", True, None),
    ]:
        assert set_notices(verbosity, progress=progress) is (hidden is None)
        assert bars_hidden() is hidden
    monkeypatch.setenv("TQDM_DISABLE", "1")
    set_notices("normal", progress=True)
    assert bars_hidden() is True


@pytest.mark.parametrize("report", ["text", "json"])
def test_a_calibration_is_told_as_asked(
    report: str,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"name": "latency_us", "typical": 2.0, "min": 1.0, "max": 3.0}
    found = {"threads": {"1": [row]}, "host": [row]}
    monkeypatch.setattr(calibrate, "calibrate", lambda folder: found)
    busy = {"text": 0.5, "json": 0.3}[report]  # of two cores
    monkeypatch.setattr(tasks.os, "cpu_count", lambda: 2)
    look = lambda interval_s: HostState(0.0, busy, 0.0, 0.0)  # noqa: E731
    monkeypatch.setattr(HostState, "look", look)
    typed = ["tpi_bench", "task=calibrate", f"report={report}", f"cache_dir={cache_dir}"]
    monkeypatch.setattr(sys, "argv", typed)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    out, err = capsys.readouterr()
    assert ("others kept 0.5 of 2 cores busy when this began" in err) == (report == "text")
    if report == "json":
        assert json.loads(out) == {
            "status": "ok",
            "exit_reason": "ok",
            "text": None,
            "results": str(calibrate.calibration_file(cache_dir)),
            "calibration": found,
        }
    else:
        assert "latency_us" in out
    assert err.strip().endswith(str(calibrate.calibration_file(cache_dir)))


def test_a_collective_that_lacks_something_is_one_line(tmp_path: Path) -> None:
    """Its record is read with the program, before a line of the command is."""
    copy = shutil.copytree(ROOT / "tpi_bench", tmp_path / "tpi_bench")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    path = copy / "engine" / "collectives.py"
    text = path.read_text()
    formula = re.search(r"\n +between=[^\n]*", text)
    assert formula
    path.write_text(text.replace(formula[0], "", 1))
    done = subprocess.run(
        [sys.executable, "-m", "tpi_bench", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert re.match(r"error: the collective \w+ has no between; its record in tpi_bench/eng", said)


@pytest.mark.parametrize(
    ("typed", "leaves_rows"),
    [
        (["task=measure", "report=json"], True),
        pytest.param(["task=generate"], False, marks=pytest.mark.product),
        (["-m", "task=measure", "repeat=0,1"], True),
        (["--help"], False),
        (["--version"], False),
        (["task=compare", "--help"], False),
    ],
)
def test_an_output_that_is_full_is_one_line(
    typed: list[str], leaves_rows: bool, cache_dir: Path, tmp_path: Path
) -> None:
    """And the folder with the rows, if there is one."""
    given = [text for text in [*REFUSED[1:], f"results_dir={tmp_path}"] if "--" not in typed[-1]]
    with Path("/dev/full").open("w") as full:
        done = run(
            *(*typed, *given, "progress=false"),
            cache_dir=cache_dir,
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    said = done.stderr.splitlines()
    assert done.returncode == 1, said
    assert said[-1] == "error: cannot write to standard output: No space left on device"
    assert len([line for line in said if "error" in line]) == 1
    assert any(line.startswith(("rows: ", "results: ")) for line in said) is leaves_rows
    assert bool(list(tmp_path.rglob("points/*.json"))) is leaves_rows
    assert "Warning" not in done.stderr


def test_a_folder_for_temporary_files_of_too_long_a_name(cache_dir: Path, tmp_path: Path) -> None:
    """The kernel takes 107 bytes for the name of a socket."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    typed = ["model=debug", "workload.prompt_ids=[1]", "workload.num_new_tokens=1"]
    done = run(*typed, cache_dir=cache_dir, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {folder} is too long a path for the sockets by which processes are started; "
        "set TMPDIR to a shorter one, such as /tmp"
    )
