"""Many modelled points at once, on all cores: what they find does not depend on this host.

A worker prepares a point, runs it and makes its record. It lives as long as there are points: what
it has loaded and traced is there for the next. `app/point_launcher.py` runs a sweep's points so;
whoever has points of his own asks `measured_side_by_side`.
"""

from __future__ import annotations

import datetime
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.host import cache
from tpi_bench.host.fork import HelperDied, InterpreterLost
from tpi_bench.host.machine import available_cpus
from tpi_bench.host.workers import Workers
from tpi_bench.measure.attempt import attempted
from tpi_bench.measure.planned import load_model, prompt_ids
from tpi_bench.measure.record import failure_record
from tpi_bench.measure.settings import Settings
from tpi_bench.report.rows import Record
from tpi_bench.report.text import in_one_line


def measured_side_by_side(
    points: Iterable[Settings], num_workers: int | None = None
) -> Iterator[Record]:
    """The records of modelled points, in their order, each as soon as those before it are there.

    Each is what `measure(prepare(settings))` gives, whatever the number of workers (one a core
    where it is not given); a point that cannot be run has a record that says why. Points are asked
    for as workers become free. Raises ValueError for a point that measures this host.
    """
    workers = SideBySide(num_workers)
    try:
        yield from workers.records(points)
    finally:
        workers.end()


class SideBySide:
    """Workers for several streams of points, one stream after another. `end` them."""

    def __init__(self, num_workers: int | None = None) -> None:
        num_workers = num_workers or len(available_cpus())
        self._workers = Workers(num_workers, "a process of modelled points")

    def records(self, points: Iterable[Settings]) -> Iterator[Record]:
        """As `measured_side_by_side`. Where nobody asks for the last of them, workers end."""
        handed_out: deque[tuple[Settings, str]] = deque()
        here = str(Path.cwd())

        def calls() -> Iterator[tuple[Settings, str, str]]:
            for settings in points:
                _refuse_measured(settings)
                # Rows are sorted by it, so it is told here, in the order of the points.
                started = datetime.datetime.now(datetime.UTC).isoformat()
                handed_out.append((settings, started))
                yield _known_once(settings), started, here

        for answer in self._workers.answers(_attempt, calls()):
            settings, started = handed_out.popleft()
            if answer.error is None:
                yield answer.value
            else:
                yield _failed(settings, started, answer.error)

    def end(self) -> None:
        """End the processes, also in the middle of a point."""
        self._workers.end()


def _known_once(settings: Settings) -> Settings:
    """What takes a while or starts processes is found out here, once for all workers.

    That is a model that is fetched, this host where it is a device, and the tokens of a prompt.
    """
    try:
        cache_dir = cache.cache_folder(settings.cache_dir)
        model = load_model(settings.model, cache_dir)
        for source in settings.profiles:
            source.load(cache_dir)
        workload = replace(settings.workload, prompt_ids=list(prompt_ids(settings, model)))
    except (ValueError, OSError, HelperDied):
        return settings  # the worker finds it out again, and makes a record of it
    return replace(settings, workload=workload)


def _attempt(settings: Settings, started: str, folder: str) -> Record:
    """In a worker, which has been started in another folder perhaps."""

    def run(job: Job) -> Outcome:
        return settings.testbed.run_here(job, cache.cache_folder(settings.cache_dir))

    os.chdir(folder)
    return attempted(settings, run).begun(started)


def _failed(settings: Settings, started: str, error: Exception) -> Record:
    """Of a point whose worker has ended, or was never there."""
    status = "device_lost" if isinstance(error, InterpreterLost) else "error"
    return failure_record(settings, in_one_line(str(error)), status).begun(started)


def _refuse_measured(settings: Settings) -> None:
    """Raises ValueError for a point that others beside it would slow down."""
    if settings.testbed.measures_here:
        raise ValueError(
            f"testbed.cost={settings.testbed.cost} is measured on this host, where points side by "
            "side slow each other down; run them one after another, or use testbed=virtual with "
            "testbed.cost=modelled"
        )
