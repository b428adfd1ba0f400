"""A sweep from the outside: where its results go, how far it is, and its tables and figure.

Hydra calls `Sweep` before and after the sweep and each of its points (`hydra.callbacks` in the
configuration). A folder of results keeps what was typed, so that `resume=DIR` can go on.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm import tqdm

from tpi_bench.app.compose import build_settings
from tpi_bench.app.errors import fail, one_line
from tpi_bench.app.sweeper import jobs_of_grids
from tpi_bench.host import cache
from tpi_bench.report.drawing import Drawing
from tpi_bench.report.folder import ResultsFolder, read_runs
from tpi_bench.report.text import point_line

_ARGUMENTS_FILE = "overrides.json"
_WITHOUT_FIGURE = (
    "system",
    "num_devices",
    "link_latency_ms",
    "ttft_s",
    "token_latency_s",
    "limit_token_s",
)


class ResultsPlace:
    """The folder of this program's results: a new one, or the one that is taken up again."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def folder_of(self, resume: str | None, results_dir: str, name: str) -> str:
        """The folder, remembered for the message when the program is stopped."""
        self._folder = Path(results_folder(resume, results_dir, name))
        return str(self._folder)

    def with_stored(self, arguments: Sequence[str]) -> list[str]:
        """`resume=DIR` brings back what DIR was made with; others would mix two experiments."""
        given = [text.partition("=")[2] for text in arguments if text.startswith("resume=")]
        if not given or given[-1] in ("", "null"):
            return list(arguments)
        path = Path(given[-1]) / _ARGUMENTS_FILE
        if not path.is_file():
            raise ValueError(
                f"resume={given[-1]}: no {_ARGUMENTS_FILE} there; give the folder of a "
                "stopped experiment"
            )
        stored = json.loads(path.read_text())
        different = [text for text in without_resume(arguments) if text not in stored]
        if different:
            raise ValueError(
                f"resume={given[-1]} was made with {' '.join(stored)}, not with {different[0]}; "
                "resume takes no other values"
            )
        return [*stored, f"resume={given[-1]}"]

    def stopped_message(self) -> str:
        """What to say when the program is stopped."""
        if self._folder is not None and (self._folder / _ARGUMENTS_FILE).is_file():
            return f"stopped; go on with: python -m tpi_bench resume={self._folder}"
        return "stopped"


def results_folder(resume: str | None, results_dir: str, name: str) -> str:
    """The folder that is taken up again, else a new one named for the time."""
    if resume not in (None, "None"):
        return str(resume)
    return str(Path(results_dir) / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))


def without_resume(arguments: Sequence[str]) -> list[str]:
    """What was asked for, apart from resume."""
    return [text for text in arguments if not text.startswith("resume=")]


class Sweep(Callback):
    """Makes the results folder, shows progress, and writes tables and figure at the end."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self._bar: tqdm[Any] | None = None
        self._left_out: list[str] = []  # why points have no row

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.task != "measure":
            return
        folder = Path(config.hydra.sweep.dir)
        ResultsFolder(folder).create()
        cache.write_json(folder / _ARGUMENTS_FILE, self._arguments)
        print(f"results: {folder}", file=sys.stderr)
        self._bar = tqdm(total=num_points(config), unit="point", disable=None, dynamic_ncols=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self._bar is not None:
            overrides = [str(item) for item in config.hydra.overrides.task]
            swept = [item for item in overrides if not item.startswith(("+experiment", "resume"))]
            self._bar.set_description_str(" ".join(swept[-3:]), refresh=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if self._bar is None:
            return
        self._bar.update()
        if isinstance(job_return._return_value, str):  # see `tasks.run_task`
            self._left_out.append(job_return._return_value)
        elif self._bar.disable:
            assert job_return.cfg is not None
            settings = build_settings(job_return.cfg, job_return.overrides or [])
            record = ResultsFolder(Path(config.hydra.sweep.dir)).load(settings.point)
            line = "no record" if record is None else point_line(record.run)
            number = f"{int(config.hydra.job.num) + 1}/{self._bar.total or '?'}"
            print(f"[{number}] {line}", file=sys.stderr, flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self._bar is None:
            return
        self._bar.set_description_str("")
        self._bar.close()
        try:  # Hydra turns a callback's exceptions into warnings, and would end with status 0
            is_good = finish(Path(config.hydra.sweep.dir), config.figure, config.report)
        except Exception as error:
            traceback.print_exc()
            fail(config.report, f"the results could not be drawn: {one_line(error)}")
        if not is_good or self._left_out:
            sys.exit(1)


def finish(folder: Path, figure: str | None, report: str) -> bool:
    """Write tables and figure, print the table; True when no point failed."""
    results = ResultsFolder(folder)
    results.write_tables()
    records = results.records()
    failed = [record.run for record in records if record.run.status != "ok"]
    differing = [record.run for record in records if record.run.differs_from_oracle]
    is_good = all(record.run.is_answer for record in records) and not differing
    written = [folder / "runs.csv"]
    if len(failed) < len(records):
        runs = read_runs(folder)
        if figure:
            drawing: Drawing = importlib.import_module(figure).DRAWING
            print(drawing.text(runs))
            written += drawing.save(runs, folder)
        else:
            print(runs[[*_WITHOUT_FIGURE]].to_string(index=False))
    for run in failed:
        print(f"failed: {point_line(run)}", file=sys.stderr)
    for run in differing:
        print(f"not the oracle's tokens: {point_line(run)}", file=sys.stderr)
    print(*written, sep="\n", file=sys.stderr)
    if report == "json":
        counts = {"points": len(records), "failed": len(failed), "results": str(folder)}
        print(json.dumps({"status": "ok" if is_good else "error"} | counts))
    return is_good


def num_points(config: DictConfig) -> int | None:
    """How many points the sweeper will make; None for what only Hydra can count, as glob(...)."""
    parts = config.hydra.sweeper
    arguments = [str(text) for text in config.hydra.overrides.task]
    try:
        jobs, _ = jobs_of_grids(parts.get("params") or {}, parts.get("grids") or [{}], arguments)
    except HydraException:
        return None
    return len(jobs)
