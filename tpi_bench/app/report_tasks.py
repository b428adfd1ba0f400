"""`task=report` and `task=ledger`: what results folders say, as a page or on a terminal."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpi_bench.app.errors import ExitStatus, one_line
from tpi_bench.app.experiment import drawing_of
from tpi_bench.host import cache
from tpi_bench.report.collection import collected
from tpi_bench.report.folder import ResultsFolder
from tpi_bench.report.ledger.entries import LEDGER, read_entries
from tpi_bench.report.ledger.text import ledger_text
from tpi_bench.report.ledger.verdicts import Judged, judged
from tpi_bench.report.older import OlderRows, told_of_older_rows
from tpi_bench.report.page.notes import Notes, read_notes
from tpi_bench.report.page.page import Drawn, gathered, html_of, slug_of_folder
from tpi_bench.report.page.svg import svg_of
from tpi_bench.report.results import load

PAGE_FILE = "report.html"
_NOTES_FILE = "README.md"
_DEFAULT = "results"
NOTES = Path(__file__).resolve().parents[2] / "results" / _NOTES_FILE  # of this clone's rows


def report(given: Mapping[str, str]) -> ExitStatus:
    """One page of all that was given."""
    roots = _folders(given)
    folders = collected(roots)
    ledger = _judged(given, folders)
    if ledger and all(each.missing for each in ledger):
        ledger = []
        print(
            "note: no claim can be judged from these folders alone, so the page has no ledger",
            file=sys.stderr,
        )
    notes = _notes(given, roots)
    page = gathered(
        folders,
        ledger,
        [each for _, each in notes],
        _drawn,
        notes_name=" and ".join(str(path) for path, _ in notes),
        command=_typed(given),
    )
    default = roots[0] / PAGE_FILE if len(roots) == 1 else Path(PAGE_FILE)
    path = Path(given["output"]) if "output" in given else default
    text = html_of(page)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(path, text)
    except OSError as error:
        raise ValueError(f"output={path} cannot be written: {error.strerror}") from error
    if given.get("report") == "json":
        said = {"status": "ok", "exit_reason": ExitStatus.OK.reason, "page": str(path)}
        print(json.dumps(said | {"experiments": len(folders), "verdicts": page.counts}))
    else:
        size, many = len(text.encode()) / 1e6, "s" * (len(folders) != 1)
        print(f"{path}: {len(folders)} experiment{many}, {size:.1f} MB; opens in any browser")
    return ExitStatus.OK


def ledger(given: Mapping[str, str]) -> ExitStatus:
    """The verdicts on a terminal."""
    found = _judged(given, collected(_folders(given)))
    if given.get("report") == "json":
        said = {"status": "ok", "exit_reason": ExitStatus.OK.reason}
        print(json.dumps(said | {"claims": [_claim(each) for each in found]}))
    else:
        print(ledger_text(found))
    return ExitStatus.OK


def _folders(given: Mapping[str, str]) -> list[Path]:
    named = given.get("folders", _DEFAULT)
    return [Path(text).expanduser() for text in named.split(",") if text]


def _judged(given: Mapping[str, str], folders: Mapping[str, Path]) -> list[Judged]:
    entries = read_entries(Path(given["ledger"]) if "ledger" in given else LEDGER)
    asked = {name for entry in entries for name in entry.folders}
    tables = {name: load(path).runs for name, path in folders.items() if name in asked}
    return judged(entries, tables)


def _claim(each: Judged) -> dict[str, Any]:
    values = {
        name: {
            end: None if math.isnan(number) else number
            for end, number in (("value", v.middle), ("low", v.low), ("high", v.high))
        }
        for name, v in each.values.items()
    }
    return {
        "question": each.entry.question,
        "claim": each.entry.claim,
        "by": each.entry.by,
        "verdict": each.verdict,
        "why": each.why,
        "measured": each.measured,
        "values": values,
        "rows": each.entry.folders,
        "commands": each.commands,
        "missing": list(each.missing),
    }


def _notes(given: Mapping[str, str], roots: Sequence[Path]) -> list[tuple[Path, Notes]]:
    """What is written of the folders: their README.md, and those of folders in them."""
    if given.get("notes") == "none":
        return []
    if "notes" in given:
        path = Path(given["notes"])
        return [(path, read_notes(path))]
    found = []
    for root in roots:
        for path in [root / _NOTES_FILE, *sorted(root.glob(f"*/{_NOTES_FILE}"))]:
            if path.is_file():
                name = "" if path.parent == root else path.parent.name
                found.append((path, read_notes(path, name)))
    return found


def _drawn(name: str, folder: Path) -> Drawn:
    """The figure of the module that draws the folder."""
    module = ResultsFolder(folder).figure
    if module is None:
        return Drawn()
    print(f"drawing {name}", file=sys.stderr)
    try:
        drawing = drawing_of(module)
        with told_of_older_rows(folder):
            stored = drawing.stored(folder)
            rows = drawing.rows(stored)
            if rows.empty:
                return Drawn(why_not=drawing.nothing)
            words = f"figure of {name}; its values stand in the tables below"
            picture = svg_of(drawing.draw(rows), slug_of_folder(name), words)
            return Drawn(picture, drawing.text(stored))
    except (ValueError, OlderRows) as error:
        return Drawn(why_not=one_line(error))


def _typed(given: Mapping[str, str]) -> str:
    told = [f"{key}={value}" for key, value in given.items() if key != "report"]
    return shlex.join(["python", "-m", "tpi_bench", "task=report", *told])
