"""The command line: Hydra composes the config, a task runs a point, an experiment many.

`python -m tpi_bench task=generate prompt="..."` and `python -m tpi_bench +experiment=NAME`.
Results go to standard output, everything else to standard error; bad input is one line and exit
status 1.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tpi_bench import cache, sweeper
from tpi_bench.config import Settings, build_settings
from tpi_bench.helper import HelperDied
from tpi_bench.reports import error_report, generation_text, point_line, run_report
from tpi_bench.results import ResultsFolder, differs_from_oracle, is_result
from tpi_bench.sweeper import CONFIG_FOLDER

_OVERRIDES_FILE = "overrides.json"
_STOPPED = 130
_left_out: list[str] = []  # why points of this sweep have no row
_HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


def main() -> None:
    """Entry point. Exit status: 0 all well, 1 anything failed, 130 stopped."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as exceptions and become one line
    folders: list[str] = []  # of the sweep, remembered for the message when it is stopped

    def results_folder(resume: str | None, results_dir: str, name: str) -> str:
        folders.append(_results_folder(resume, results_dir, name))
        return folders[-1]

    OmegaConf.register_new_resolver(
        "tpi_results_folder", results_folder, use_cache=True, replace=True
    )
    sweeper.register()
    arguments = sys.argv[1:]
    try:
        sys.argv[1:] = with_stored_overrides(arguments)
        entry = hydra.main(
            version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config"
        )(run_task)
        entry()
    except KeyboardInterrupt:
        print(_stopped_message(folders), file=sys.stderr)
        sys.exit(_STOPPED)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (*_HYDRA_ERRORS, YAMLError, ValueError, OSError) as error:
        _fail("json" if "report=json" in arguments else "text", one_line(error))


def run_task(cfg: DictConfig) -> None:
    """One point. In a sweep a failed point is a row; bad input ends the program.

    Where a sweep has begun well, settings that do not go together are left out of it.
    """
    try:
        try:
            settings = build_settings(cfg, HydraConfig.get().overrides.task)
        except ValueError as error:
            if _is_later_point():
                print(f"left out: {one_line(error)}", file=sys.stderr)
                _left_out.append(one_line(error))
                return
            raise
        if settings.task == "calibrate":
            _calibrate(settings)
        elif settings.task == "generate":
            _generate(settings)
        elif HydraConfig.get().mode == RunMode.MULTIRUN:
            _measure(settings, Path(HydraConfig.get().sweep.dir))
        else:
            _measure_alone(settings)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, HelperDied) as error:
        _fail(cfg.report, one_line(error))
    except Exception as error:
        traceback.print_exc()
        _fail(cfg.report, f"{type(error).__name__}: {one_line(error)} (a defect; please report it)")


def _is_later_point() -> bool:
    config = HydraConfig.get()
    return config.mode == RunMode.MULTIRUN and int(config.job.num) > 0


def _generate(settings: Settings) -> None:
    from tpi_bench import points, text

    prepared = points.prepare(settings)
    if settings.report == "json":
        record = points.measure(prepared)
        print(json.dumps(run_report(record)), flush=True)
        _exit_unless_good(record)
        return
    stream = text.TextStream(prepared.model.folder) if prepared.model.folder else None
    print(points.describe(prepared), file=sys.stderr)

    def show(token: int) -> None:
        print(stream.add(token) if stream else f"{token} ", end="", flush=True)

    record = points.measure(prepared, show)
    if record["run"]["status"] == "ok":
        print("\n")
        print(generation_text(record))
    _exit_unless_good(record)


def _calibrate(settings: Settings) -> None:
    from tpi_bench import calibrate

    print("calibrating; leave the machine alone for a minute", file=sys.stderr)
    cache_dir = cache.cache_folder(settings.cache_dir)
    found = calibrate.calibrate(cache_dir)
    print(calibrate.calibration_text(found))
    print(calibrate.calibration_file(cache_dir), file=sys.stderr)


def _measure(settings: Settings, folder: Path) -> None:
    """A point of a sweep: skip it if it is done, else leave its record in the results folder."""
    from tpi_bench import points

    results = ResultsFolder(folder)
    if results.is_done(settings.point):
        return
    try:
        record = points.measure(points.prepare(settings))
    except (ValueError, OSError, HelperDied) as error:
        record = points.failure_record(settings, one_line(error))
    except Exception as error:  # a defect of one system is no reason to lose the others' points
        traceback.print_exc()
        record = points.failure_record(settings, f"{type(error).__name__}: {one_line(error)}")
    results.save(settings.point, record)


def _measure_alone(settings: Settings) -> None:
    from tpi_bench import points

    folder = _results_folder(settings.raw["resume"], settings.results_dir, settings.name)
    prepared = points.prepare(settings)
    results = ResultsFolder(Path(folder))
    results.create()
    record = points.measure(prepared)
    results.save(settings.point, record)
    results.write_tables()
    if settings.report == "json":
        print(json.dumps(run_report(record)), flush=True)
    else:
        if record["run"]["status"] == "ok":
            print(generation_text(record))
        print(f"rows: {folder}")
    _exit_unless_good(record)


def _exit_unless_good(record: dict[str, Any]) -> None:
    """With `check=true` other tokens than the oracle's are a failure too."""
    run = record["run"]
    if run["status"] != "ok":
        print(f"{run['status']}: {run['error']}", file=sys.stderr)
    if run["status"] != "ok" or _differ([run]):
        sys.exit(1)


def _differ(runs: list[dict[str, Any]]) -> bool:
    import pandas as pd

    return bool(differs_from_oracle(pd.DataFrame(runs)).any())


class ExperimentCallback(Callback):
    """A sweep from the outside: results folder, progress, and at the end tables and figure."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._total = 0
        self._started: dict[int, str] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from tqdm import tqdm

        if config.task != "measure":
            return
        folder = Path(config.hydra.sweep.dir)
        results = ResultsFolder(folder)
        results.create()
        cache.write_json(folder / _OVERRIDES_FILE, _given_overrides(sys.argv[1:]))
        print(f"results: {folder}", file=sys.stderr)
        try:
            self._total = num_points(config)
        except HydraException:  # a sweep that only Hydra can count, as glob(...)
            self._total = 0
        self._bar = tqdm(total=self._total or None, unit="point", disable=None, dynamic_ncols=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self._bar is not None:
            overrides = [str(item) for item in config.hydra.overrides.task]
            swept = [item for item in overrides if not item.startswith(("+experiment", "resume"))]
            self._bar.set_description_str(" ".join(swept[-3:]), refresh=True)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        if self._bar is None:
            return
        self._bar.update()
        if self._bar.disable:
            try:
                settings = build_settings(job_return.cfg, job_return.overrides)
            except ValueError:  # said and left out
                return
            record = ResultsFolder(Path(config.hydra.sweep.dir)).load(settings.point)
            done = int(config.hydra.job.num) + 1
            print(
                f"[{done}/{self._total or '?'}] {point_line(record)}", file=sys.stderr, flush=True
            )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self._bar is None:
            return
        self._bar.set_description_str("")
        self._bar.close()
        try:  # Hydra turns a callback's exceptions into warnings, and would end with status 0
            is_good = finish_experiment(Path(config.hydra.sweep.dir), config.figure, config.report)
        except Exception as error:
            traceback.print_exc()
            _fail(config.report, f"the results could not be drawn: {one_line(error)}")
        if not is_good or _left_out:
            sys.exit(1)


def finish_experiment(folder: Path, figure: str | None, report: str) -> bool:
    """Write tables and figure, print the table; True when no point failed."""
    from tpi_bench import figures

    runs = ResultsFolder(folder).write_tables()["runs"]
    failed, differing = runs[runs.status != "ok"], runs[differs_from_oracle(runs)]
    is_good = bool(is_result(runs).all()) and differing.empty
    written = [folder / "runs.csv"]
    if "token_latency_s" in runs and figure:
        experiment = importlib.import_module(figure)
        print(experiment.table(runs))
        if experiment.has_rows(runs):
            written += figures.save_figure(experiment.draw(runs), folder, experiment.NAME)
    elif "token_latency_s" in runs:
        shown = [
            "system",
            "num_devices",
            "link_latency_ms",
            "ttft_s",
            "token_latency_s",
            "limit_token_s",
        ]
        print(runs[shown].to_string(index=False))
    for row in failed.to_dict("records"):
        print(f"failed: {point_line({'run': row})}", file=sys.stderr)
    for row in differing.to_dict("records"):
        print(f"not the oracle's tokens: {point_line({'run': row})}", file=sys.stderr)
    print(*written, sep="\n", file=sys.stderr)
    if report == "json":
        counts = {
            "status": "ok" if is_good else "error",
            "points": len(runs),
            "failed": len(failed),
        }
        print(json.dumps(counts | {"results": str(folder)}))
    return is_good


def num_points(config: DictConfig) -> int:
    """How many points Hydra's own sweeper will make of the experiment and the command line."""
    parts = config.hydra.sweeper
    arguments = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
    jobs, _ = sweeper.jobs_of_grids(
        parts.get("params") or {}, parts.get("grids") or [{}], arguments
    )
    return len(jobs)


def with_stored_overrides(arguments: list[str]) -> list[str]:
    """`resume=DIR` brings back the overrides of DIR; others would mix two experiments."""
    folders = [
        argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")
    ]
    if not folders or folders[-1] in ("", "null"):
        return arguments
    path = Path(folders[-1]) / _OVERRIDES_FILE
    if not path.is_file():
        raise ValueError(
            f"resume={folders[-1]}: no {_OVERRIDES_FILE} there; give the folder of a "
            "stopped experiment"
        )
    stored = json.loads(path.read_text())
    given = _given_overrides(arguments)
    different = [argument for argument in given if argument not in stored]
    if different:
        raise ValueError(
            f"resume={folders[-1]} was made with {' '.join(stored)}, not with {different[0]}; "
            "resume takes no other values"
        )
    return [*stored, f"resume={folders[-1]}"]


def _given_overrides(arguments: list[str]) -> list[str]:
    """What was asked for, apart from resume."""
    return [argument for argument in arguments if not argument.startswith("resume=")]


def _results_folder(resume: str | None, results_dir: str, name: str) -> str:
    if resume not in (None, "None"):
        return str(resume)
    return str(Path(results_dir) / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))


def one_line(error: BaseException) -> str:
    """The innermost reason of an error, as one line that says what is allowed."""
    while error.__cause__ is not None and isinstance(error, _HYDRA_ERRORS):
        error = error.__cause__
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    for line in lines:
        key = line.partition("full_key: ")[2]
        if key and isinstance(error, OmegaConfBaseException):
            return f"{key}: {lines[0]}; python -m tpi_bench --help lists the names there are"
    if "Config search path:" in lines:
        lines = lines[: lines.index("Config search path:")]
    lines = [line for line in lines if not line.startswith(("See https", "Set the environment"))]
    text = (
        ", ".join(lines)
        .replace(":,", ":")
        .replace("In 'config': ", "")
        .replace("', Avail", "'; avail")
    )
    return text or type(error).__name__


def _fail(report: str, message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    if report == "json":
        print(json.dumps(error_report(message)))
    sys.exit(1)


def _stopped_message(folders: list[str]) -> str:
    if folders and (Path(folders[-1]) / _OVERRIDES_FILE).is_file():
        return f"stopped; go on with: python -m tpi_bench resume={folders[-1]}"
    return "stopped"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
