"""The tasks: generate, measure a point, calibrate, tell perplexities. Hydra calls `run_task`."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tpi_bench.app.compose import build_settings
from tpi_bench.app.errors import fail, one_line
from tpi_bench.app.experiment import results_folder
from tpi_bench.contract.plan import DoesNotFit
from tpi_bench.host import cache
from tpi_bench.host.fork import HelperDied, InterpreterLost
from tpi_bench.measure.settings import Settings
from tpi_bench.report.folder import ResultsFolder
from tpi_bench.report.rows import Record
from tpi_bench.report.text import generation_text, run_report


def run_task(cfg: DictConfig) -> str | None:
    """One point. In a sweep a failed point is a row; bad input ends the program.

    Where a sweep has begun well, settings that do not go together are left out of it: returns why.
    """
    try:
        try:
            settings = build_settings(cfg, HydraConfig.get().overrides.task)
        except ValueError as error:
            if _is_later_point():
                print(f"left out: {one_line(error)}", file=sys.stderr)
                return one_line(error)
            raise
        if settings.task == "calibrate":
            _calibrate(settings)
        elif settings.task == "perplexity":
            _perplexity(settings)
        elif settings.task == "generate":
            _generate(settings)
        elif HydraConfig.get().mode == RunMode.MULTIRUN:
            _measure(settings, Path(HydraConfig.get().sweep.dir))
        else:
            _measure_alone(settings)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, HelperDied) as error:
        fail(cfg.report, one_line(error))
    except Exception as error:
        traceback.print_exc()
        fail(cfg.report, f"{type(error).__name__}: {one_line(error)} (a defect; please report it)")
    return None


def _is_later_point() -> bool:
    config = HydraConfig.get()
    return config.mode == RunMode.MULTIRUN and int(config.job.num) > 0


def _generate(settings: Settings) -> None:
    from tpi_bench.measure.point import measure
    from tpi_bench.measure.prepare import describe, prepare
    from tpi_bench.models import tokenizer

    prepared = prepare(settings)
    if settings.report == "json":
        record = measure(prepared)
        print(json.dumps(run_report(record)), flush=True)
        _exit_unless_good(record)
        return
    stream = tokenizer.TextStream(prepared.model.folder) if prepared.model.folder else None
    print(describe(prepared), file=sys.stderr)

    def show(token: int) -> None:
        print(stream.add(token) if stream else f"{token} ", end="", flush=True)

    record = measure(prepared, show)
    if record.run.status == "ok":
        print("\n")
        print(generation_text(record))
    _exit_unless_good(record)


def _calibrate(settings: Settings) -> None:
    from tpi_bench.measure import calibrate

    print("calibrating; leave the machine alone for a minute", file=sys.stderr)
    cache_dir = cache.cache_folder(settings.cache_dir)
    found = calibrate.calibrate(cache_dir)
    print(calibrate.calibration_text(found))
    print(calibrate.calibration_file(cache_dir), file=sys.stderr)


def _perplexity(settings: Settings) -> None:
    from tpi_bench.measure import perplexity

    is_text = settings.report == "text"
    found: list[perplexity.Score] = []
    for score in perplexity.scores(settings):
        if is_text and not found:
            print(perplexity.SCORE_HEAD)
        found.append(score)
        if is_text:
            print(perplexity.score_line(score), flush=True)
    if is_text:
        print(f"of {max(score.num_tokens for score in found)} tokens")
    else:
        print(json.dumps(perplexity.score_report(found)), flush=True)
    if all(score.error for score in found):
        sys.exit(1)


def _measure(settings: Settings, folder: Path) -> None:
    """A point of a sweep: skip it if it is done, else leave its record in the results folder."""
    from tpi_bench.measure.point import measure
    from tpi_bench.measure.prepare import prepare
    from tpi_bench.measure.record import failure_record

    results = ResultsFolder(folder)
    if results.is_done(settings.point):
        return
    try:
        record = measure(prepare(settings))
    except DoesNotFit as error:
        record = failure_record(settings, one_line(error), "oom")
    except InterpreterLost as error:
        record = failure_record(settings, one_line(error), "device_lost")
    except (ValueError, OSError, HelperDied) as error:
        record = failure_record(settings, one_line(error))
    except Exception as error:  # a defect of one system is no reason to lose the others' points
        traceback.print_exc()
        record = failure_record(settings, f"{type(error).__name__}: {one_line(error)}")
    results.save(record)


def _measure_alone(settings: Settings) -> None:
    from tpi_bench.measure.point import measure
    from tpi_bench.measure.prepare import prepare

    folder = results_folder(settings.raw["resume"], settings.results_dir, settings.name)
    prepared = prepare(settings)
    results = ResultsFolder(Path(folder))
    results.create()
    record = measure(prepared)
    results.save(record)
    results.write_tables()
    if settings.report == "json":
        print(json.dumps(run_report(record)), flush=True)
    else:
        if record.run.status == "ok":
            print(generation_text(record))
        print(f"rows: {folder}")
    _exit_unless_good(record)


def _exit_unless_good(record: Record) -> None:
    """With `check=true` other tokens than the oracle's are a failure too."""
    run = record.run
    if run.status != "ok":
        print(f"{run.status}: {run.error}", file=sys.stderr)
    if run.status != "ok" or run.differs_from_oracle:
        sys.exit(1)
