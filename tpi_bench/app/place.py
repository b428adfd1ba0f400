"""Where results go: a new folder, `output_dir=DIR`, or the one that `resume=DIR` takes up again.

A finished folder is never written into, and one that a program writes into is locked against
others, so nothing that was measured is lost.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tpi_bench.app.arguments import as_typed, plain_text
from tpi_bench.host.locks import Lock
from tpi_bench.report.folder import ARGUMENTS_FILE, ResultsFolder, read_runs
from tpi_bench.report.json_keys import counts_of
from tpi_bench.report.names import counted

# What may differ from how the folder was begun: it changes no point.
_FREE = ("report", "timeout_s", "verbosity", "progress", "wait", "cache_dir")
_PLACES = ("resume", "output_dir", "results_dir")

LEAVE_NO_ROWS = (
    "generate",
    "chat",
    "perplexity",
    "calibrate",
    "survey",
)  # tasks that tell what they find


class InUse(RuntimeError):
    """Another program writes into the results folder."""


class ResultsPlace:
    """The folder of this program's results."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def folder_of(
        self, task: str, resume: str | None, output_dir: str | None, results_dir: str, name: str
    ) -> str:
        """The folder, remembered for the message when the program is stopped.

        What leaves no rows has none: Hydra, which makes one in any case, finds it there.
        """
        if task in LEAVE_NO_ROWS:
            return "."
        given = map(plain_text, (resume, output_dir, results_dir, name))
        self._folder = Path(_results_folder(*given))
        return str(self._folder)

    @property
    def folder(self) -> Path | None:
        """None as long as nothing has asked for one."""
        return self._folder

    def with_stored(self, arguments: Sequence[str]) -> list[str]:
        """`resume=DIR` brings back what DIR was made with; others would mix two experiments."""
        given = [text for text in arguments if text.startswith("resume=")]
        if not given or given[-1] in ("resume=", "resume=null"):
            return list(arguments)
        resumed = as_typed(given[-1])
        folder = ResultsFolder(Path(resumed.removeprefix("resume=")))
        stored = folder.arguments
        if stored is None:
            is_there = folder.folder.is_dir()
            what = f"no {ARGUMENTS_FILE} there" if is_there else "there is no such folder"
            raise ValueError(f"{resumed}: {what}; give the folder of a stopped experiment")
        if folder.is_finished:
            raise ValueError(f"{resumed}: {_finished(folder)}")
        flags = ("-m", "--multirun") if folder.is_sweep else ()  # which it is in any case
        asked = [text for text in without_resume(arguments) if text not in flags]
        added = [text for text in asked if text.partition("=")[0] in _FREE]
        different = [text for text in asked if text not in {*stored, *added}]
        if different:
            raise ValueError(
                f"{resumed} was made with {shlex.join(map(as_typed, stored))}, not with "
                f"{as_typed(different[0])}; "
                f"resume takes no other values than {'=, '.join(_FREE)}="
            )
        return [*stored, *added, given[-1]]

    def stopped_message(self) -> str:
        """What to say when the program is stopped."""
        if self._folder is not None and (self._folder / ARGUMENTS_FILE).is_file():
            return f"stopped; go on with: python -m tpi_bench {_resume(self._folder)}"
        return "stopped"

    def so_far(self) -> dict[str, Any]:
        """For the JSON object of a program that was stopped: the folder, if it can be taken up
        again, and of a sweep the rows that exist.
        """
        if self._folder is None or not (self._folder / ARGUMENTS_FILE).is_file():
            return {}
        counts = rows_so_far(self._folder) if ResultsFolder(self._folder).is_sweep else {}
        return counts | {"results": str(self._folder)}


def rows_so_far(folder: Path, num_left_out: int = 0) -> dict[str, Any]:
    """For the JSON object of a sweep that does not come to its end."""
    statuses = [record.run.status for record in ResultsFolder(folder).records()]
    results = str(folder) if statuses else None
    return {"results": results, **counts_of(statuses, num_left_out)}


def refuse_changed(config: DictConfig, stored: DictConfig) -> None:
    """What files of the configuration say may not differ from how a sweep was begun.

    Raises ValueError.
    """
    now, before = _values_of(config), _values_of(stored)
    changed = [key for key in {**before, **now} if now.get(key) != before.get(key)]
    if changed:
        key = changed[0]
        more = f" (and {len(changed) - 1} more)" if changed[1:] else ""
        raise ValueError(
            f"resume={config.resume}: the configuration has changed since it was begun: {key} is "
            f"{now.get(key)} and was {before.get(key)}{more}; undo that, or begin a new folder"
        )


def _values_of(config: DictConfig) -> dict[str, Any]:
    """What makes its points, each by its whole name, as it was written."""
    plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    sweeper = plain.pop("hydra", {}).get("sweeper", {})
    kept = {key: value for key, value in plain.items() if key not in {*_FREE, *_PLACES}}
    kept["hydra"] = {"sweeper": {key: value for key, value in sweeper.items() if key[0] != "_"}}
    return dict(_flat(kept))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif not key.startswith("_"):  # names of classes, which may move
            yield f"{above}{key}", value


def missing_folders(folder: Path) -> list[Path]:
    """What would have to be made for it, itself first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_unused(made: Sequence[Path]) -> None:
    """The folder of a sweep that was refused, which it has made, and those above it that it has.

    Nothing where a row is.
    """
    if not made or not ResultsFolder(made[0]).is_unused:
        return
    shutil.rmtree(made[0], ignore_errors=True)
    with contextlib.suppress(OSError):  # others may have made something there meanwhile
        for parent in made[1:]:
            parent.rmdir()


def open_place(folder: Path, arguments: Sequence[str], resume: str | None) -> Lock:
    """The folder made or found, and its lock taken, which ends with this process at the latest.

    Raises ValueError for a folder that is not to be written into, InUse where another program does.
    """
    results = ResultsFolder(folder)
    _refuse_file(folder)
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


def _refuse_file(folder: Path) -> None:
    """In the place of the folder, or of one above it."""
    for each in (folder, *folder.parents):
        if each.is_file():
            raise ValueError(
                f"the results folder cannot be {folder}: {each} is a file; give another folder "
                "with output_dir=DIR or results_dir=DIR"
            )


def _refuse_what_is_there(results: ResultsFolder) -> None:
    """`output_dir` must be new or empty."""
    if results.is_unused:
        return
    if results.is_finished:
        advice = _finished(results)
    elif results.arguments is None:
        advice = "it is not empty; give a new folder"
    else:
        advice = f"an experiment was begun there; go on with {_resume(results.folder)}"
    raise ValueError(f"output_dir={results.folder}: {advice}")


def _resume(folder: Path) -> str:
    """As one types it in a shell."""
    return shlex.quote(f"resume={folder}")


def _finished(results: ResultsFolder) -> str:
    """That the folder is finished, and what can be done."""
    figure, stored = results.figure, results.arguments
    where = shlex.quote(str(results.folder))
    again = f"; draw it again with: python -m {figure} {where}" if figure else ""
    typed = shlex.join(map(as_typed, stored or ()))
    anew = f"; measure it anew with: python -m tpi_bench {typed}" if stored else ""
    points = counted(len(read_runs(results.folder)), "point")
    return f"it is finished ({points}) and is never written into{again}{anew}"
