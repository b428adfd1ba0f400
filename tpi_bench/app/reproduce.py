"""`task=reproduce`: the whole set of experiments again, each a program of its own, then the page.

Says first how long it takes. What is finished for the same commit is not run again, what was
stopped goes on, and one Ctrl-C ends all.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tpi_bench.app import report_tasks
from tpi_bench.app.errors import ExitStatus
from tpi_bench.app.reproduction import (
    MARK,
    PLAN,
    Step,
    disk_told,
    estimate_of,
    read_steps,
    state_of,
    told,
)
from tpi_bench.host import cache
from tpi_bench.host.machine import provenance
from tpi_bench.report.collection import has_rows
from tpi_bench.report.durations import seconds_of
from tpi_bench.report.folder import ResultsFolder
from tpi_bench.report.results import load

_COMMAND = (sys.executable, "-m", "tpi_bench")
_DEFAULT = "results/reference"
_GOOD = (ExitStatus.OK, ExitStatus.POINTS_FAILED)  # which has rows for all that has an answer
_PATIENCE_S = 60.0  # for a program that was asked to stop


def reproduce(given: Mapping[str, str]) -> ExitStatus:
    """Raises ValueError before anything is started, KeyboardInterrupt once all has ended."""
    folder = Path(given.get("folder", _DEFAULT)).expanduser()
    only = [text for text in given.get("only", "").split(",") if text]
    steps = read_steps(Path(given["plan"]) if "plan" in given else PLAN, only)
    is_estimate = _yes(given, "estimate")
    commit = str(provenance()["commit"])
    states = {step.name: state_of(step, folder, commit) for step in steps}
    estimates = {step.name: estimate_of(step, folder) for step in steps}
    blocks = cache.cache_folder(given.get("cache_dir"))
    left = [step for step in steps if states[step.name] != "done"]
    print(told(steps, states, estimates), flush=True)
    if left:
        print(disk_told(left, estimates, blocks, folder), flush=True)
    if is_estimate:
        return ExitStatus.OK
    failed = _run_all(left, states, folder, given.get("cache_dir"), commit)
    return _report(folder, given, steps, failed)


def _yes(given: Mapping[str, str], key: str) -> bool:
    value = given.get(key, "false")
    if value not in ("true", "false"):
        raise ValueError(f"{key}={value} is not allowed; it may be true or false")
    return value == "true"


def _run_all(
    left: Sequence[Step],
    states: Mapping[str, str],
    folder: Path,
    cache_dir: str | None,
    commit: str,
) -> list[str]:
    """The names of those that have no rows, or not of all points."""
    failed = []
    for number, step in enumerate(left, 1):
        print(f"\n[{number}/{len(left)}] {step.name}", flush=True)
        if _run(step, states[step.name], folder, cache_dir, commit) not in _GOOD:
            failed.append(step.name)
            print(f"{step.name} failed; the others go on", file=sys.stderr, flush=True)
    return failed


def _run(step: Step, state: str, folder: Path, cache_dir: str | None, commit: str) -> int:
    target, before = folder / step.name, folder / f".{step.name}.before"
    if state == "again":
        shutil.rmtree(before, ignore_errors=True)
        target.rename(before)
    place = f"resume={target}" if state == "resume" else f"output_dir={target}"
    own = [place] if state == "resume" else [*step.arguments, place]
    more = [] if cache_dir is None else [f"cache_dir={cache_dir}"]
    begun = time.monotonic()
    status = _program([*own, *more])
    if status in _GOOD and (target / "runs.parquet").is_file() and _is_answered(target):
        shutil.rmtree(target / "points", ignore_errors=True)  # its tables are what is kept
        shutil.rmtree(before, ignore_errors=True)
        seconds = time.monotonic() - begun
        if state == "resume":  # without the break
            seconds = seconds_of(load(target).runs)
        mark = {"arguments": step.arguments, "commit": commit, "seconds": seconds}
        cache.write_json(target / MARK, mark)
        return status
    return status if status not in _GOOD else ExitStatus.ERROR


def _is_answered(target: Path) -> bool:
    """Whether no error kept a point from being run, as a full disk does: it is tried again."""
    return all(record.run.is_answer for record in ResultsFolder(target).records())


def _program(arguments: Sequence[str]) -> int:
    """One command, apart from this one's terminal group, so that it hears of Ctrl-C once."""
    command = [*_COMMAND, *arguments]
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    with subprocess.Popen(command, start_new_session=True) as running:
        try:
            return running.wait()
        except KeyboardInterrupt:
            _stop(running)
            print("the same command goes on where this one stopped", file=sys.stderr)
            raise


def _stop(running: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would; by force where it does not end, or somebody is impatient."""
    running.send_signal(signal.SIGINT)
    try:
        running.wait(_PATIENCE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _report(
    folder: Path, given: Mapping[str, str], steps: Sequence[Step], failed: Sequence[str]
) -> ExitStatus:
    """The page and the ledger of all that is there."""
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries again", file=sys.stderr)
    if not any(has_rows(folder / step.name) for step in steps):
        return ExitStatus.POINTS_FAILED
    shown = {"folders": str(folder)}
    shown |= {key: given[key] for key in ("ledger", "notes") if key in given}
    print()
    has_notes = "notes" in given or not report_tasks.NOTES.is_file()
    page = shown if has_notes else shown | {"notes": str(report_tasks.NOTES)}
    report_tasks.report(page)
    ledger = {key: value for key, value in shown.items() if key != "notes"}
    print()
    report_tasks.ledger(ledger)
    return ExitStatus.POINTS_FAILED if failed else ExitStatus.OK
