"""The tasks: generate, measure, advise, calibrate, survey, perplexity. Hydra calls `run_task`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tpi_bench.app.advise import advise
from tpi_bench.app.arguments import as_typed
from tpi_bench.app.compose import build_settings
from tpi_bench.app.errors import (
    ExitStatus,
    defect_of,
    end_unread,
    fail,
    fail_of,
    one_line,
    status_of_error,
    status_of_run,
    tell,
)
from tpi_bench.app.place import InUse, open_place, rows_so_far
from tpi_bench.app.points import refuse_unread, run_point
from tpi_bench.app.streams import CannotPrint
from tpi_bench.app.survey import survey_of_cluster
from tpi_bench.host import cache
from tpi_bench.host.fork import HelperDied
from tpi_bench.host.machine import HostState
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.turns import HostBusy, measuring_turn
from tpi_bench.report.folder import CannotWrite, ResultsFolder
from tpi_bench.report.older import told_of_older_rows
from tpi_bench.report.results import Result
from tpi_bench.report.rows import BUSY_SHARE, Record
from tpi_bench.report.text import point_line, run_report

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.2


class Records(Protocol):
    """What a launcher has computed before it is asked for."""

    def record_of(self, settings: Settings) -> Record | None:
        """The point's record; None where it is to be measured now."""
        ...


def run_task(cfg: DictConfig, records: Records | None = None) -> str | None:
    """One point. Bad input ends the program.

    In a sweep a point that fails is a row, or without task=measure told. Settings that do not go
    together are left out of it. Returns why a point has neither row nor answer. `records` has those
    of points that are computed ahead of their turn.
    """
    is_swept = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        try:
            settings = build_settings(cfg, HydraConfig.get().overrides.task)
            if not is_swept:
                _refuse_grids()
        except ValueError as error:
            if is_swept:  # of which others can be run (`refusals.py`)
                _LOG.warning("left out: %s", one_line(error))
                return one_line(error)
            raise
        if is_swept and settings.task not in ("measure", "advise"):
            return _one_of_several(settings)
        _run(settings, records)
    except BrokenPipeError:
        end_unread()
    except (ValueError, OSError, HelperDied, HostBusy, InUse) as error:
        if isinstance(error, CannotPrint) and (folder := _so_far(cfg, error).get("results")):
            print(f"rows: {folder}", file=sys.stderr)
        fail_of(cfg.report, error, **_so_far(cfg, error))
    except Exception as error:
        traceback.print_exc()
        fail(cfg.report, defect_of(error))
    return None


def _so_far(cfg: DictConfig, error: Exception) -> dict[str, Any]:
    """Of a sweep that ends here, for its JSON object; of a point, where its row is."""
    is_swept = HydraConfig.get().mode == RunMode.MULTIRUN
    if cfg.task != "measure" or not (is_swept or isinstance(error, (CannotWrite, CannotPrint))):
        return {}
    found = rows_so_far(Path(HydraConfig.get().sweep.dir))
    return found if is_swept else {"results": found["results"]}


def _refuse_grids() -> None:
    """Raises ValueError where an experiment has several points and nothing says that it sweeps."""
    swept = [key for key in ("params", "grids") if HydraConfig.get().sweeper.get(key)]
    if swept:
        raise ValueError(
            f"hydra.sweeper.{swept[0]} has several points, and this runs one; add -m, or to the "
            "experiment's YAML hydra: {mode: MULTIRUN}"
        )


def _run(settings: Settings, records: Records | None = None) -> None:
    if settings.task == "calibrate":
        _calibrate(settings)
    elif settings.task == "survey":
        survey_of_cluster(settings)
    elif settings.task == "advise":
        advise(settings)
    elif settings.task == "perplexity":
        _perplexity(settings)
    elif settings.task == "generate":
        _generate(settings)
    elif settings.task == "chat":
        _chat(settings)
    elif HydraConfig.get().mode == RunMode.MULTIRUN:
        _measure(settings, Path(HydraConfig.get().sweep.dir), records)
    else:
        _measure_alone(settings)


def _one_of_several(settings: Settings) -> str | None:
    """An answer of a sweep that leaves no rows; the next is asked for whatever becomes of it."""
    try:
        _run(settings)
    except (BrokenPipeError, CannotPrint, HostBusy):
        raise
    except SystemExit as end:  # it has been told
        return f"status {end.code}"
    except Exception as error:
        said = one_line(error)
        if not isinstance(error, (ValueError, OSError, HelperDied)):
            traceback.print_exc()
            said = defect_of(error)
        tell(settings.report, said, status_of_error(error), overrides=_own_overrides())
        return said
    return None


def _own_overrides() -> list[str]:
    return [as_typed(str(text)) for text in HydraConfig.get().overrides.task]


def _generate(settings: Settings) -> None:
    if settings.report == "json":
        result = run_point(settings, on_text=lambda piece: None)  # as in text: ids must be told
        _print_report(result)
        _exit_unless_good(result.record)
        return
    result = run_point(
        settings, on_start=_LOG.info, on_text=lambda piece: print(piece, end="", flush=True)
    )
    if result.status == "ok":
        print("\n")
        print(result)
    _exit_unless_good(result.record)


def _chat(settings: Settings) -> None:
    """What was typed decides: a prompt is the first turn, and answers may be longer than one."""
    from tpi_bench.app.chat import chat
    from tpi_bench.measure.talk import NEW_TOKENS, refuse_talk

    refuse_unread(settings)
    refuse_talk(settings)  # before it waits for its turn
    typed = {text.partition("=")[0] for text in HydraConfig.get().overrides.task}
    workload = settings.workload
    if "workload.num_new_tokens" not in typed:
        workload = replace(workload, num_new_tokens=NEW_TOKENS)
    first = settings.raw["prompt"] if "prompt" in typed else None
    with measuring_turn(settings.testbed, wait=settings.wait):  # it would disturb who measures
        status = chat(replace(settings, workload=workload), first)
    if status != ExitStatus.OK:
        sys.exit(status)


def _calibrate(settings: Settings) -> None:
    from tpi_bench.measure import calibrate

    print("calibrating; leave the machine alone for about five minutes", file=sys.stderr)
    cache_dir = cache.cache_folder(settings.cache_dir)
    with measuring_turn(None, wait=settings.wait):
        busy, cores = HostState.look(_LOOK_S).busy_cores, os.cpu_count() or 1
        found = calibrate.calibrate(cache_dir)
    if busy > BUSY_SHARE * cores:
        print(
            f"note: others kept {busy:.1f} of {cores} cores busy when this began, so the host may "
            "do more; calibrate it again when it is alone",
            file=sys.stderr,
        )
    file = calibrate.calibration_file(cache_dir)
    if settings.report == "json":
        said = {"status": "ok", "exit_reason": ExitStatus.OK.reason, "text": None}
        print(json.dumps(said | {"results": str(file), "calibration": found}), flush=True)
    else:
        print(calibrate.calibration_text(found))
    print(file, file=sys.stderr)


def _perplexity(settings: Settings) -> None:
    from tpi_bench.measure import perplexity

    is_text = settings.report == "text"
    found: list[perplexity.Score] = []
    with measuring_turn(settings.testbed, wait=settings.wait):
        for score in perplexity.scores(settings):
            if is_text and not found:
                print(perplexity.SCORE_HEAD)
            found.append(score)
            if is_text:
                print(perplexity.score_line(score), flush=True)
    all_failed = all(score.error for score in found)
    status = ExitStatus.ERROR if all_failed else ExitStatus.OK
    if is_text:
        print(f"of {max(score.num_tokens for score in found)} tokens")
    else:
        said = {"exit_reason": status.reason, "text": None, "results": None}
        print(json.dumps(perplexity.score_report(found) | said), flush=True)
    if status != ExitStatus.OK:
        sys.exit(status)


def awaits_record(settings: Settings, folder: Path) -> bool:
    """Whether a point of a sweep is to be measured, and is not done."""
    is_measured = settings.task == "measure"
    return is_measured and not ResultsFolder(folder).done(settings.point, settings.timeout_s)


def _measure(settings: Settings, folder: Path, records: Records | None) -> None:
    """A point of a sweep: skip it if it is done, else leave its record in the results folder."""
    from tpi_bench.measure.attempt import attempted
    from tpi_bench.measure.prepare import refuse_early

    results = ResultsFolder(folder)
    if results.done(settings.point, settings.timeout_s):
        _note_same(settings, results)
        return
    try:
        if settings.testbed.measures_here:
            refuse_early(settings)
    except Exception:  # a system may raise anything; its record says what, and needs no turn
        results.save(attempted(settings))
        return
    record = records.record_of(settings) if records is not None else None
    if record is None:
        with measuring_turn(settings.testbed, wait=settings.wait):
            record = attempted(settings)
    results.save(record)


def _note_same(settings: Settings, results: ResultsFolder) -> None:
    """Of a point that another one of the sweep stands for."""
    done = results.load(settings.point)
    swept = settings.raw["network"]
    if done is None or done.config["network"] == swept or settings.raw["resume"]:
        return
    differing = [f"network.{k}={v}" for k, v in swept.items() if done.config["network"].get(k) != v]
    _LOG.info(
        "note: %s changes nothing with one device, which has no links; it is the point that was "
        "measured before",
        " ".join(differing),
    )


def _measure_alone(settings: Settings) -> None:
    config = HydraConfig.get()
    folder, resume = Path(config.sweep.dir), settings.raw["resume"]
    results = ResultsFolder(folder)
    done = results.done(settings.point, settings.timeout_s) if resume else None
    if done is not None:
        result = Result(done)
        with told_of_older_rows(folder):
            _LOG.info("done already, and not run again: %s", point_line(done.run))
    else:
        with contextlib.ExitStack() as held:

            def take_folder(_: str) -> None:
                lock = open_place(folder, config.callbacks["sweep"].arguments, resume)
                held.callback(lock.give_back)

            result = run_point(settings, on_start=take_folder)
            results.save(result.record)
            results.write_tables()
    with told_of_older_rows(folder) if done is not None else contextlib.nullcontext():
        if settings.report == "json":
            _print_report(result, folder)
        elif result.status == "ok":
            print(result)
    if settings.report != "json":
        print(f"rows: {folder}", flush=True)
    _exit_unless_good(result.record)


def _print_report(result: Result, results: Path | None = None) -> None:
    """`report=json` of a point by itself; its text where the model has a tokenizer.

    A sweep of answers prints an object a line, which says what it is of.
    """
    reason = status_of_run(result.row).reason
    report = run_report(result.record, reason, text=result.text, results=results)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        report["overrides"] = _own_overrides()
    print(json.dumps(report), flush=True)


def _exit_unless_good(record: Record) -> None:
    run, status = record.run, status_of_run(record.run)
    if run.status != "ok":
        print(f"{run.status}: {run.error}", file=sys.stderr)
    if status != ExitStatus.OK:
        sys.exit(status)
