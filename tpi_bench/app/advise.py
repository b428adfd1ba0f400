"""`task=advise` on the command line: what is typed to a household, advice to text or JSON.

The search itself is `measure/advise.py`, what is told `report/advice.py`. Rows go to a results
folder, as a sweep's do.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from tqdm import tqdm

from tpi_bench.app.advise_again import commands
from tpi_bench.app.advise_asked import GIGABIT, base_of, fixed_of, household_of
from tpi_bench.app.errors import ExitStatus
from tpi_bench.app.experiment import drawing_of
from tpi_bench.app.like import settings_like
from tpi_bench.app.place import open_place
from tpi_bench.host import cache
from tpi_bench.measure.settings import Settings
from tpi_bench.report.advice import Advice, Rows, advice_report
from tpi_bench.report.advice_text import advice_text, seconds_text
from tpi_bench.report.folder import ResultsFolder
from tpi_bench.report.rows import Record

if TYPE_CHECKING:
    from tpi_bench.measure.side_by_side import SideBySide

_LOG = logging.getLogger(__name__)
_BAR = "{desc} ({n} run, {elapsed})"
_SECONDS = 26.0  # with the program's own start less than 30


def advise(settings: Settings) -> None:
    """Search, keep the rows, and tell. Raises ValueError, in one line, for what cannot be."""
    from tpi_bench.measure.advise import Adviser
    from tpi_bench.measure.planned import load_model
    from tpi_bench.measure.side_by_side import SideBySide

    config = HydraConfig.get()
    if config.mode == RunMode.MULTIRUN:
        raise ValueError("task=advise is a search by itself; leave out -m, and ask it once a model")
    cache_dir = cache.cache_folder(settings.cache_dir)
    model = load_model(settings.model, cache_dir)
    household = household_of(settings, cache_dir)
    fixed = fixed_of(settings)
    base = base_of(settings, cache_dir)
    results, kept = ResultsFolder(Path(config.sweep.dir)), list[Record]()
    is_shown = settings.raw["progress"] and settings.raw["verbosity"] != "quiet"
    workers = SideBySide()
    hidden = None if is_shown else True  # None: on a terminal alone
    bar = tqdm(desc="searching", bar_format=_BAR, disable=hidden, dynamic_ncols=True)

    def measured(points: Iterable[Settings]) -> Iterator[Record]:
        for record in _not_twice(results, workers, points):
            kept.append(record)
            yield record

    def tell(words: str, best_s: float) -> None:
        known = f", {seconds_text(best_s)} a token at best" if math.isfinite(best_s) else ""
        bar.set_description_str(words + known, refresh=False)
        bar.update()

    adviser = Adviser(
        household=household,
        config=model.config,
        fixed=fixed,
        make=lambda changes: settings_like(base, changes),
        measured=measured,
        tell=tell,
        model=model.name,
        seconds=settings.timeout_s or _SECONDS,
    )
    bounded = adviser.bounded()  # before there is a folder, as it may refuse
    arguments, resume = config.callbacks["sweep"].arguments, settings.raw["resume"]
    lock = open_place(results.folder, arguments, resume)
    _LOG.info("results: %s", results.folder)
    try:
        advice, found = adviser.advise(bounded)
    finally:
        workers.end()
        bar.close()
        lock.give_back()
    if found.best:
        changes = found.best[0].way.changes(household)
        advice.commands = commands(base, changes, household, found.best[0].way)
    advice.notes = _notes(settings, found, cache_dir)
    _finish(settings, results, advice, Rows.of(kept))


def _not_twice(
    results: ResultsFolder, workers: SideBySide, points: Iterable[Settings]
) -> Iterator[Record]:
    """The record of each point, in order; what is in the folder already is not run again."""
    asked = list(points)
    done = {each.point: results.done(each.point) for each in asked}
    missing = {each.point: each for each in asked if done[each.point] is None}
    records = workers.records(missing.values())
    for each in asked:
        record = done[each.point]
        if record is None:
            record = done[each.point] = next(records)
            results.save(record)
        yield record


def _notes(settings: Settings, found: Any, cache_dir: Path) -> list[str]:
    """What must be known of the numbers."""
    from tpi_bench.measure.calibrate import ThisHost

    notes = [
        "virtual time with modelled cost, by the devices' profiles; measure before you buy",
        "all memory of a device is given to the model; where a system and other programs need some "
        "of it, say what is left: device.NAME.memory_gb=",
    ]
    for host in dict.fromkeys(s for s in settings.profiles if isinstance(s, ThisHost)):
        most = host.most_threads(cache_dir)
        if host.threads < most:
            notes.append(
                f"this_host counts with {host.threads} of its {most} cores; with all of them: "
                f"device.this_host.threads={most}"
            )
    if all(text in settings.overrides for text in GIGABIT):
        notes.append(
            "the network is taken as a gigabit switch, 0.1 ms a hop; say another with network= and "
            "network.link_latency_ms=, network.bandwidth_mbps="
        )
    if any(tried.way.setting("wire") == "q8" for tried in found.best[:1]):
        notes.append("wire q8 rounds what devices send, which the perplexity column does not count")
    return notes


def _finish(settings: Settings, results: ResultsFolder, advice: Advice, rows: Rows) -> None:
    """Tables, figure and advice on the disk, then told."""
    folder = results.folder
    results.write_tables()
    with results.writing():
        advice.save(folder)
        (folder / "config.yaml").write_text(yaml.safe_dump({"figure": settings.figure}))
    drawn: list[Path] = []
    if advice.best and settings.figure is not None:
        with results.writing():
            drawing = drawing_of(settings.figure)
            drawn = drawing.save(drawing.stored(folder), folder)
    if settings.report == "json":
        status = ExitStatus.OK if advice.best else ExitStatus.OUT_OF_MEMORY
        said = {"status": "ok" if advice.best else "oom", "exit_reason": status.reason}
        print(json.dumps(said | {"text": None} | advice_report(advice, rows, folder)), flush=True)
    else:
        print(advice_text(advice, rows))
    _LOG.info("\n".join(map(str, [folder / "runs.csv", folder / "advice.json", *drawn])))
    if not advice.best:
        raise SystemExit(ExitStatus.OUT_OF_MEMORY)
