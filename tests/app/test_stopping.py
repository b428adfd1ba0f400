"""Stopping the program at any time: one word, and nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from hydra.errors import ConfigCompositionException

from tests.app.test_sweeps import SWEEP
from tests.helpers.command_line import ROOT
from tpi_bench.app import hydra_app
from tpi_bench.app.main import main
from tpi_bench.report import json_keys
from tpi_bench.report.failure import error_report


def has_connections(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # helpers come and go
        return bool(process.net_connections(kind="tcp"))
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing_running(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path, number: int
) -> None:
    command = [
        sys.executable,
        "-m",
        "tpi_bench",
        *SWEEP,
        f"model.path={checkpoints['gqa']}",
        "network.link_latency_ms=5",
        "workload.num_new_tokens=400",
        "system=tpi",
        f"results_dir={tmp_path}",
        f"cache_dir={cache_dir}",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 30
    devices: list[psutil.Process] = []
    while len(devices) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        devices = [c for c in parent.children(recursive=True) if has_connections(c)]
    assert len(devices) == 2
    started = parent.children(recursive=True)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "stopped; go on with: python -m tpi_bench resume=" in errors
    assert "Traceback" not in errors
    _gone, alive = psutil.wait_procs(started, timeout=3)
    assert not alive
    assert not list(tmp_path.rglob("*.tmp*"))


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def imports_torch(process: subprocess.Popen, cache_dir: Path) -> bool:
    paths = [Path(f"/proc/{p.pid}/maps") for p in descendants(process)]
    return any("libtorch" in path.read_text() for path in paths if path.exists())


def has_helper(process: subprocess.Popen, cache_dir: Path) -> bool:
    return any(p.ppid() != process.pid for p in descendants(process))


def has_block_file(process: subprocess.Popen, cache_dir: Path) -> bool:
    return any(cache_dir.rglob("*rank0*"))


def still_running(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """After that time. One that has ended, but is not waited for, does not run."""
    deadline = time.monotonic() + within_s
    while (left := [each for each in processes if _runs(each)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize(
    "has_come",
    [imports_torch, pytest.param(has_helper, marks=pytest.mark.product), has_block_file],
)
def test_ctrl_c_at_any_time_is_one_word(
    tmp_path: Path, has_come: Callable[[subprocess.Popen, Path], bool]
) -> None:
    """A terminal sends it to all processes, some of which are still starting.

    What still loads torch does not go on with it behind the command.
    """
    command = [sys.executable, "-m", "tpi_bench", "model=tinyllama_1.1b", f"cache_dir={tmp_path}"]
    told = tmp_path / "told"  # no pipe, which is open as long as anybody has it
    with told.open("w") as file:
        process = subprocess.Popen(
            [*command, "workload.prompt_ids=[1]"],
            stdout=file,
            stderr=file,
            cwd=ROOT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 30
    while not has_come(process, tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    started = descendants(process)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=30)
    assert not still_running(started, within_s=0.5)
    announced = "writing 4.4 GB of block files to "  # where it has come so far
    said = [line for line in told.read_text().splitlines() if not line.startswith(announced)]
    assert (process.returncode, said) == (130, ["stopped"])
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for temporary files, with a name that is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_background_launcher_that_is_killed_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    """Scripts start what runs in the background with SIGINT ignored; helpers need it to tidy up."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tpi_bench",
            "model=tinyllama_1.1b",
            "workload.prompt_ids=[1]",
            f"cache_dir={tmp_path}",
        ],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(scratch)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    deadline = time.monotonic() + 30
    while not has_block_file(process, tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert has_block_file(process, tmp_path)
    started = descendants(process)
    process.kill()
    process.wait()
    _gone, alive = psutil.wait_procs(started, timeout=3)
    assert not alive
    assert not list(tmp_path.rglob("*.tmp*"))
    assert not list(scratch.iterdir())  # as multiprocessing's folder with its socket


def test_without_an_interpreter_to_fork_from_a_device_is_lost(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    """The kernel ends the largest process when memory is short. The next point has a new one."""
    command = [
        sys.executable,
        *("-m", "tpi_bench", "-m", "task=measure", "model=hf", "system=tpi,pipeline"),
        *(f"model.path={checkpoints['gqa']}", "workload.prompt_ids=[1]"),
        *("workload.num_new_tokens=2", f"results_dir={tmp_path}", f"cache_dir={cache_dir}"),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    deadline = time.monotonic() + 30
    while not imports_torch(process, cache_dir) and time.monotonic() < deadline:
        time.sleep(0.02)
    (server,) = [p for p in descendants(process) if "forkserver" in " ".join(p.cmdline())]
    server.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "Traceback" not in errors
    assert "a defect" not in errors
    (table,) = tmp_path.rglob("runs.parquet")
    runs = pd.read_parquet(table)
    assert list(runs.status) == ["device_lost", "ok"]
    assert "the interpreter that devices are forked from has ended" in runs.error[0]


def test_ctrl_c_during_the_imports_is_one_word() -> None:
    code = """
import runpy, sys

class Stop:
    def find_spec(self, name, path, target=None):
        if name == "tpi_bench.app.main":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stop())
runpy.run_module("tpi_bench", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (130, "stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("typed", [[], ["report=json"], ["-m", "task=measure", "report=json"]])
def test_a_stop_before_the_imports_are_done_is_answered_as_later(
    number: signal.Signals, typed: list[str]
) -> None:
    """Also where what is imported catches everything; a second one changes nothing."""
    process = importing(number, number, *typed)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "stopped\n")
    if not typed:
        assert out == ""
        return
    report = json.loads(out)
    own = json_keys.SWEEP if "-m" in typed else error_report("", "")
    assert report.keys() == (json_keys.COMMON | own).keys()
    assert (report["exit_reason"], report["error"], report["results"]) == ("stopped",) * 2 + (None,)


def test_ctrl_c_is_ignored_in_the_background_during_the_imports_too() -> None:
    """Where scripts start it."""
    process = importing(
        signal.SIGINT,
        "--version",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert out.startswith("tpi_bench")


def importing(*given: signal.Signals | str, **how: Any) -> subprocess.Popen:
    """The program with arguments, which gets the signals while it is imported."""
    numbers = [int(each) for each in given if isinstance(each, signal.Signals)]
    code = f"""
import contextlib, os, runpy, sys

class Stop:
    def find_spec(self, name, path, target=None):
        if name == "tpi_bench.app.main":
            for number in {numbers}:
                with contextlib.suppress(BaseException):
                    os.kill(os.getpid(), number)

sys.meta_path.insert(0, Stop())
runpy.run_module("tpi_bench", run_name="__main__")
"""
    typed = [each for each in given if not isinstance(each, signal.Signals)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *typed],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **how,
    )


def test_a_second_stop_while_the_first_is_said_leaves_no_traceback(cache_dir: Path) -> None:
    """Nor does one that comes while Python ends."""
    code = """
import atexit, os, runpy, signal, sys
from tpi_bench.app.place import ResultsPlace

class Stop:
    def find_spec(self, name, path, target=None):
        if name == "tpi_bench.app.chat":
            raise KeyboardInterrupt

def message(place):
    os.kill(os.getpid(), signal.SIGINT)
    return "stopped"

ResultsPlace.stopped_message = message
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.meta_path.insert(0, Stop())
runpy.run_module("tpi_bench", run_name="__main__")
"""
    typed = ["task=chat", "model=debug", "report=json", f"cache_dir={cache_dir}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *typed], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (130, "stopped\n")
    assert json.loads(done.stdout)["exit_reason"] == "stopped"


def test_a_reader_that_leaves_is_no_failure_of_a_device(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    command = (
        f"{sys.executable} -m tpi_bench model=hf model.path={checkpoints['gqa']} "
        f"workload.prompt_ids=[1,2,3] workload.num_new_tokens=200 cache_dir={cache_dir} | head -c 1"
        "; echo ${PIPESTATUS[0]} >&2"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert len(done.stdout) == 1
    assert "device_lost" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert done.stderr.split()[-1] == "0"


def test_a_stop_that_a_library_makes_an_error_of_is_a_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compose(*arguments: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ConfigCompositionException("there is no defaults")  # noqa: B904

    monkeypatch.setattr(hydra_app, "start", compose)
    monkeypatch.setattr(sys, "argv", ["tpi_bench", "report=json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    out, errors = capsys.readouterr()
    assert json.loads(out)["exit_reason"] == "stopped"
    assert errors == "stopped\n"
