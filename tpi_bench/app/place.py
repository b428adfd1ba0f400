"""Where results go: a new folder, `output_dir=DIR`, or the one that `resume=DIR` takes up again.

A finished folder is never written into, and one that a program writes into is locked against
others, so nothing that was measured is lost.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tpi_bench.host.locks import Lock
from tpi_bench.report.folder import ARGUMENTS_FILE, ResultsFolder, read_runs

# What may differ from how the folder was begun: it changes no point.
_FREE = ("report", "timeout_s", "verbosity", "progress", "wait", "cache_dir")


class InUse(RuntimeError):
    """Another program writes into the results folder."""


class ResultsPlace:
    """The folder of this program's results."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def folder_of(
        self, resume: str | None, output_dir: str | None, results_dir: str, name: str
    ) -> str:
        """The folder, remembered for the message when the program is stopped."""
        self._folder = Path(_results_folder(resume, output_dir, results_dir, name))
        return str(self._folder)

    @property
    def folder(self) -> Path | None:
        """None as long as nothing has asked for one."""
        return self._folder

    def with_stored(self, arguments: Sequence[str]) -> list[str]:
        """`resume=DIR` brings back what DIR was made with; others would mix two experiments."""
        given = [text.partition("=")[2] for text in arguments if text.startswith("resume=")]
        if not given or given[-1] in ("", "null"):
            return list(arguments)
        resumed = f"resume={given[-1]}"
        folder = ResultsFolder(Path(given[-1]))
        stored = folder.arguments
        if stored is None:
            raise ValueError(
                f"{resumed}: no {ARGUMENTS_FILE} there; give the folder of a stopped experiment"
            )
        if folder.is_finished:
            raise ValueError(f"{resumed}: {_finished(folder)}")
        asked = without_resume(arguments)
        added = [text for text in asked if text.partition("=")[0] in _FREE]
        different = [text for text in asked if text not in {*stored, *added}]
        if different:
            raise ValueError(
                f"{resumed} was made with {shlex.join(stored)}, not with {different[0]}; "
                f"resume takes no other values than {'=, '.join(_FREE)}="
            )
        return [*stored, *added, resumed]

    def stopped_message(self) -> str:
        """What to say when the program is stopped."""
        if self._folder is not None and (self._folder / ARGUMENTS_FILE).is_file():
            return f"stopped; go on with: python -m tpi_bench resume={self._folder}"
        return "stopped"


def open_place(folder: Path, arguments: Sequence[str], resume: str | None) -> Lock:
    """The folder made or found, and its lock taken, which ends with this process at the latest.

    Raises ValueError for a folder that is not to be written into, InUse where another program does.
    """
    results = ResultsFolder(folder)
    if resume is None:
        _refuse_what_is_there(results)
    elif results.is_finished:
        raise ValueError(f"resume={resume}: {_finished(results)}")
    results.create()
    lock = Lock(results.lock_path)
    with results.writing():
        is_ours = lock.take()
    if not is_ours:
        raise InUse(
            f"the results folder {folder} is in use by {lock.holder}; wait for it, or take "
            "another folder"
        )
    if resume is None:  # else whoever takes it up may have added `report=json`
        results.keep_arguments(arguments)
    return lock


def without_resume(arguments: Sequence[str]) -> list[str]:
    """What was asked for, apart from resume."""
    return [text for text in arguments if not text.startswith("resume=")]


def _results_folder(resume: str | None, output_dir: str | None, results_dir: str, name: str) -> str:
    """The folder that is taken up again, the one that was given, else a new one for the time."""
    for given in (resume, output_dir):
        if given not in (None, "None"):
            return str(given)
    return str(Path(results_dir) / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))


def _refuse_what_is_there(results: ResultsFolder) -> None:
    """`output_dir` must be new or empty."""
    if results.is_unused:
        return
    if results.is_finished:
        advice = _finished(results)
    elif results.arguments is None:
        advice = "it is not empty; give a new folder"
    else:
        advice = f"an experiment was begun there; go on with resume={results.folder}"
    raise ValueError(f"output_dir={results.folder}: {advice}")


def _finished(results: ResultsFolder) -> str:
    """That the folder is finished, and what can be done."""
    figure, stored = results.figure, results.arguments
    again = f"; draw it again with: python -m {figure} {results.folder}" if figure else ""
    anew = f"; measure it anew with: python -m tpi_bench {shlex.join(stored)}" if stored else ""
    num_points = len(read_runs(results.folder))
    return f"it is finished ({num_points} points) and is never written into{again}{anew}"
