"""A sweep from the outside: its lock, how far it is, and its tables and figure.

Hydra calls `Sweep` before and after the sweep and each of its points (`hydra.callbacks` in the
configuration). Where the results go stands in `place.py`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TextIO

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import DictConfig
from tqdm import tqdm

from tpi_bench.app.arguments import as_typed, plain_text
from tpi_bench.app.choices import choices_of
from tpi_bench.app.compose import build_settings
from tpi_bench.app.config_folders import folders_of
from tpi_bench.app.devices import notes_on
from tpi_bench.app.errors import ExitStatus, end_unread, fail, fail_of, one_line
from tpi_bench.app.launchers import WatchesSweep
from tpi_bench.app.notices import set_notices
from tpi_bench.app.place import InUse, missing_folders, open_place, remove_unused, rows_so_far
from tpi_bench.app.streams import CannotPrint
from tpi_bench.app.sweeper import jobs_of_grids, refuse_settings
from tpi_bench.host.locks import Lock
from tpi_bench.report.drawing import Drawing
from tpi_bench.report.folder import CannotWrite, ResultsFolder, read_runs
from tpi_bench.report.json_keys import counts_of
from tpi_bench.report.names import counted
from tpi_bench.report.older import OlderRows, told_of_older_rows
from tpi_bench.report.rows import RunRow
from tpi_bench.report.sweep_table import overrides_of, sweep_table, varying
from tpi_bench.report.text import point_line

_LOG = logging.getLogger(__name__)
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"  # points, whatever they take


class Sweep(WatchesSweep):
    """Makes the results folder, shows progress, and writes tables and figure at the end."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self._bar: tqdm[Any] | None = None
        self._hides_bar = False
        self._lock: Lock | None = None
        self._jobs: list[list[str]] | None = None
        self._left_out: list[str] = []  # why points have no row, or no answer
        self._kept: set[str] = set()  # points that are not run again
        self._made: list[Path] = []  # folders that were not there before
        self._greeting: list[str] = []  # what is said once the points are known to be right
        self._is_copy = False  # in a launcher's worker

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        set_notices(config.verbosity, progress=bool(config.progress))
        for note in notes_on(self.arguments):
            _LOG.info(note)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        is_shown = set_notices(config.verbosity, progress=bool(config.progress))
        if config.task == "generate" and config.figure is not None:
            fail_of(
                config.report,
                ValueError(
                    f"figure={config.figure} draws rows, and task=generate leaves none; give "
                    "task=measure, in an experiment's YAML task: measure"
                ),
            )
        if config.task != "measure":
            jobs = all_jobs(config)
            if jobs is not None and len(jobs) > 1:
                self._jobs = jobs
                note = f"note: task={config.task} leaves no rows and no table; task=measure does"
                self._greeting = [note]
            self._greeting += notes_on(self.arguments)
            return
        folder = Path(config.hydra.sweep.dir)
        try:  # Hydra turns a callback's exceptions into warnings, and would go on
            if config.hydra.sweeper.get("_target_", "").endswith(".GridSweeper"):
                refuse_settings(config.hydra.sweeper)
            if config.figure is not None:
                drawing_of(config.figure)
            self._made = missing_folders(folder)
            self._lock = open_place(folder, self.arguments, plain_text(config.resume))
        except (ValueError, OSError, InUse) as error:
            fail_of(config.report, error, **counts_of([]))
        self._jobs = all_jobs(config)
        self._greeting = [f"results: {folder}", *notes_on(self.arguments)]
        if config.resume is not None:
            kept = kept_rows(ResultsFolder(folder), config.timeout_s)
            self._kept = {run.point for run in kept}
            self._greeting.append(kept_line(kept, folder))
        self._hides_bar = not is_shown

    def on_accepted(self) -> None:
        for line in self._greeting:
            _LOG.info(line)
        if self._lock is not None:
            total = None if self._jobs is None else len(self._jobs)
            hidden = True if self._hides_bar else None  # None: on a terminal alone
            self._bar = tqdm(total=total, bar_format=_BAR, disable=hidden, dynamic_ncols=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self._is_copy:
            set_notices(config.verbosity, progress=False)
        if self._bar is not None:
            self._bar.set_description_str(" ".join(self._swept(config)[-3:]), refresh=True)
        elif self._jobs is not None and config.report == "text":
            place = f"[{int(config.hydra.job.num) + 1}/{len(self._jobs)}]"
            try:
                print(place, *self._swept(config), flush=True)
            except CannotPrint as error:
                fail_of(config.report, error)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if isinstance(job_return._return_value, str):  # see `tasks.run_task`
            self._left_out.append(job_return._return_value)
        if self._bar is None:
            return
        self._bar.update()
        if self._bar.disable and not isinstance(job_return._return_value, str):
            assert job_return.cfg is not None
            settings = build_settings(job_return.cfg, job_return.overrides or [])
            if settings.point in self._kept:
                return
            record = ResultsFolder(Path(config.hydra.sweep.dir)).load(settings.point)
            swept = self._swept(config)
            line = "no record" if record is None else point_line(record.run, swept)
            _LOG.info("[%d/%s] %s", int(config.hydra.job.num) + 1, self._bar.total or "?", line)

    def on_worker_end(self, job_return: JobReturn) -> None:
        if self._bar is not None:
            self._bar.update()
        if isinstance(job_return._return_value, str):
            self._left_out.append(job_return._return_value)

    def on_broken_off(self, *, is_stopped: bool) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._lock is not None:
            self._lock.give_back()
            if not is_stopped:  # else it may be taken up again
                remove_unused(self._made)

    def __getstate__(self) -> dict[str, Any]:
        """The copy of a worker has no bar and no lock, and tells each point in a line."""
        bar = None if self._bar is None else tqdm(total=self._bar.total, disable=True)
        return vars(self) | {"_bar": bar, "_lock": None, "_is_copy": True}

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self._bar is None:
            self._end_of_answers()
            return
        self._bar.set_description_str("")
        self._bar.close()
        try:  # Hydra turns a callback's exceptions into warnings, and would end with status 0
            status = finish(
                Path(config.hydra.sweep.dir),
                config.figure,
                config.report,
                self._left_out,
                known=self._kept,
            )
        except BrokenPipeError:  # whoever read the table has gone; the rows are there
            end_unread()
        except (CannotWrite, CannotPrint) as error:
            fail_of(config.report, error, **self._rows(config))
        except OlderRows as error:
            fail(config.report, str(error), **self._rows(config))
        except Exception as error:
            traceback.print_exc()
            said = f"the results could not be drawn: {one_line(error)}"
            fail(config.report, said, **self._rows(config))
        finally:
            if self._lock is not None:
                self._lock.give_back()
        if status != ExitStatus.OK:
            sys.exit(status)

    def _rows(self, config: DictConfig) -> dict[str, Any]:
        return rows_so_far(Path(config.hydra.sweep.dir), len(self._left_out))

    def _end_of_answers(self) -> None:
        """Of a sweep without rows; what failed has been said."""
        if self._left_out:
            of = f"of {counted(len(self._jobs), 'point')}" if self._jobs else "points"
            print(f"{len(self._left_out)} {of} failed", file=sys.stderr)
            sys.exit(ExitStatus.POINTS_FAILED)

    def _swept(self, config: DictConfig) -> list[str]:
        """What sets this point apart from the others of the sweep, as typed."""
        own = [str(text) for text in config.hydra.overrides.task]
        common = set(own).intersection(*self._jobs) if self._jobs else set()
        return [as_typed(text) for text in own if text not in common]


def finish(
    folder: Path,
    figure: str | None,
    report: str,
    left_out: Sequence[str] = (),
    *,
    known: Collection[str] = (),
) -> ExitStatus:
    """Write tables and figure, print the table; the status says whether all points have answers.
    `left_out` has the reasons of points without a row.

    Nothing is written where there are tables and no point beside those that are `known`. That a
    point does not fit, or takes too long, is one, but not of a sweep that has no other.
    """
    results = ResultsFolder(folder)
    runs = [record.run for record in results.records()]
    is_new = any(run.point not in known for run in runs) or not (folder / "runs.parquet").is_file()
    if is_new:
        results.write_tables()
    failed = [run for run in runs if run.status != "ok"]
    differing = [run for run in runs if run.differs_from_oracle]
    is_good = all(run.is_answer for run in runs) and not differing and not left_out
    is_good &= len(failed) < len(runs)
    shown = sys.stderr if report == "json" else sys.stdout  # there only the object
    figure = figure if len(failed) < len(runs) else None
    written = [folder / "runs.csv", *_show(results, figure, shown, draws=is_new)]
    swept = dict(zip((run.point for run in runs), varying(map(overrides_of, runs)), strict=True))
    for run in failed:
        what = "without a result" if run.is_answer else "failed"
        _LOG.warning("%s: %s", what, point_line(run, swept[run.point]))
    for run in differing:
        _LOG.warning("not the oracle's tokens: %s", point_line(run, swept[run.point]))
    _LOG.info("\n".join(map(str, written)))
    status = ExitStatus.OK if is_good else ExitStatus.POINTS_FAILED
    said_why = {} if is_good else {"error": _what_failed(runs, left_out)}
    for line in said_why.values():
        print(f"error: {line}", file=sys.stderr)
    if report == "json":
        counts = counts_of([run.status for run in runs], len(left_out))
        said = {"status": "ok" if is_good else "error", "exit_reason": status.reason, "text": None}
        print(json.dumps(said | counts | {"results": str(folder)} | said_why), flush=True)
    return status


def _what_failed(runs: Sequence[RunRow], left_out: Sequence[str]) -> str:
    """How many points of a sweep that is no success, and the first reason."""
    reasons = [run.error or run.status for run in runs if not run.is_answer]
    reasons += ["other tokens than the oracle's" for run in runs if run.differs_from_oracle]
    reasons += left_out
    num_points = len(runs) + len(left_out)
    if reasons:
        return f"{len(reasons)} of {num_points} points failed: {reasons[0]}"
    first = next((f": {run.error or run.status}" for run in runs), "")
    return f"none of {num_points} points has a result{first}"


def _show(results: ResultsFolder, figure: str | None, shown: TextIO, *, draws: bool) -> list[Path]:
    """Print the experiment's own table, or that of any sweep; returns the files drawn."""
    if figure is None:
        print(sweep_table(read_runs(results.folder)), file=shown, flush=True)
        return []
    drawing = drawing_of(figure)
    with told_of_older_rows(results.folder), results.writing():
        rows = drawing.stored(results.folder)
        drawn = drawing.save(rows, results.folder) if draws else []
    print(drawing.text(rows), file=shown, flush=True)
    return drawn


def drawing_of(figure: str) -> Drawing:
    """What the module draws results with. Raises ValueError, best before a sweep and not after."""
    try:
        drawing = importlib.import_module(figure).DRAWING
    except Exception as error:  # a module of the user's own raises anything
        said = one_line(error)
        if not isinstance(error, (ImportError, AttributeError, SyntaxError)):
            said = f"{type(error).__name__}: {said}"
        if isinstance(error, ModuleNotFoundError) and f"{figure}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no figure={figure}; {_nearest_figure(figure)} (see experiments/README.md"
                " for one of yours)"
            ) from error
        raise ValueError(
            f"figure={figure} cannot draw the results: {said}; it must name a module "
            "with a DRAWING (see experiments/README.md)"
        ) from error
    if not isinstance(drawing, Drawing):
        raise ValueError(
            f"figure={figure}: its DRAWING is of type {type(drawing).__name__}; it must be a "
            "Drawing of tpi_bench.report.drawing"
        )
    if drawing.name != figure.rpartition(".")[2]:
        raise ValueError(
            f"figure={figure}: its DRAWING is called {drawing.name}; it must have the module's "
            f"name, {figure.rpartition('.')[2]}, by which figures are found again"
        )
    return drawing


def _nearest_figure(figure: str) -> str:
    """Of those that the experiments of `conf/` name; its package may have been left out."""
    named = [str(each["figure"]) for each in choices_of("experiment").values() if "figure" in each]
    by_module = {name.rpartition(".")[2]: name for name in sorted(named)}
    near = difflib.get_close_matches(figure.rpartition(".")[2], by_module, n=1)
    if near:
        return f"did you mean figure={by_module[near[0]]}?"
    return f"there are {', '.join(by_module.values())}"


def kept_rows(results: ResultsFolder, timeout_s: float | None) -> list[RunRow]:
    """What is not run again when a folder is taken up."""
    return [r.run for r in results.records() if results.done(r.run.point, timeout_s)]


def kept_line(kept: Sequence[RunRow], folder: Path) -> str:
    """The same in one line."""
    several = "points are done and are not run again"
    line = counted(len(kept), "point is done and is not run again", several)
    answers = {"oom": "out of memory", "timeout": "longer than timeout_s allows"}
    counts = {words: sum(r.status == status for r in kept) for status, words in answers.items()}
    told = [f"{count} {words}" for words, count in counts.items() if count]
    if told:
        line += f", among them {' and '.join(told)}, which is an answer (remove its file in "
        line += f"{folder / 'points'} to ask again)"
    return line


def all_jobs(config: DictConfig) -> list[list[str]] | None:
    """What the sweeper will run; None for what only Hydra can count, as glob(...)."""
    parts = config.hydra.sweeper
    arguments = [str(text) for text in config.hydra.overrides.task]
    try:
        jobs, _ = jobs_of_grids(
            parts.get("params") or {},
            parts.get("grids") or [{}],
            arguments,
            folders_of(config),
            draw=parts.get("draw"),
            seed=parts.get("seed", 0),
        )
    except HydraException:
        return None
    return jobs
