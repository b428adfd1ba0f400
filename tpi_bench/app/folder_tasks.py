"""Tasks of results folders: compare, trace, report, ledger, and reproduce, which fills them.

They take folders and no settings of a point, so nothing is composed: their few arguments are read
here, before Hydra is asked.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpi_bench.app.errors import ExitStatus
from tpi_bench.app.typed import did_you_mean
from tpi_bench.host import cache
from tpi_bench.report.chrome_trace import chrome_trace
from tpi_bench.report.comparison import (
    Comparison,
    compared_runs,
    comparison_report,
    comparison_text,
)
from tpi_bench.report.results import Results, load

TRACE_FILE = "trace.json"


@dataclass(frozen=True)
class FolderTask:
    """`needed` and `more` are its arguments; one without a name is the first of them.

    With `takes_several` that may be given more than once, and is joined by commas.
    """

    run: Callable[[Mapping[str, str]], ExitStatus]
    needed: tuple[str, ...]
    more: tuple[str, ...]
    usage: str
    takes_several: bool = False

    def start(self, typed: Sequence[str]) -> ExitStatus:
        """Raises ValueError where an argument is unknown, missing or makes no sense."""
        given: dict[str, str] = {}
        if {"--help", "-h"} & set(typed):
            print(f"usage: {self.usage}")
            return ExitStatus.OK
        for text in typed:
            key, has_value, value = text.partition("=")
            if key == "task":
                continue
            if not has_value and not text.startswith("-"):
                key, value = (*self.needed, *self.more)[0], text
                if self.takes_several and key in given:
                    value = f"{given[key]},{value}"
            known = (*self.needed, *self.more, "report")
            if key not in known:
                name = key or text
                names = did_you_mean(name, known)
                stop = "" if names.endswith(("?", ".")) else "."
                raise ValueError(f"there is no {name} here; {names}{stop} Usage: {self.usage}")
            given[key] = value
        missing = [key for key in self.needed if not given.get(key)]
        if missing:
            raise ValueError(f"{' and '.join(missing)} is missing. Usage: {self.usage}")
        if given.get("report", "text") not in ("text", "json"):
            raise ValueError(f"report={given['report']} is not allowed; it may be text or json")
        return self.run(given)


def folder_task(typed: Sequence[str]) -> FolderTask | None:
    """The task that was typed, if it is one of these."""
    named = [text.partition("=")[2] for text in typed if text.startswith("task=")]
    return FOLDER_TASKS.get(named[-1]) if named else None


def _compare(given: Mapping[str, str]) -> ExitStatus:
    a, b = (_stored(given[letter], letter) for letter in ("a", "b"))
    fail_above = _share(given["fail_above"]) if "fail_above" in given else None
    found = compared_runs(a.runs, b.runs)
    failed = None if fail_above is None else _why_no_pass(found, fail_above)
    status = ExitStatus.OK if failed is None else ExitStatus.ERROR
    said = {"status": "ok", "exit_reason": status.reason}
    if failed is not None:
        reason, why = failed
        said = {"status": "error", "exit_reason": reason, "error": why}
        print(f"error: {why}", file=sys.stderr)
    if given.get("report") == "json":
        print(
            json.dumps({**said, "fail_above": fail_above, **comparison_report(found, fail_above)})
        )
    else:
        print(comparison_text(found, fail_above))
    return status


def _why_no_pass(found: Comparison, fail_above: float) -> tuple[str, str] | None:
    """`exit_reason`, and why in a line; a check that can judge nothing is not passed."""
    worse, num_common = found.worse(fail_above), len(found.lines)
    if worse:
        of = f"{len(worse)} of {num_common} points are slower by more than {fail_above:.0%}"
        return "slower", f"{of}, or failed: {worse[0].name}: {worse[0].verdict}"
    if found.only_a:
        of = f"{len(found.only_a)} of a's {num_common + len(found.only_a)} points"
        return "missing", f"{of} are missing in b: {found.only_a[0]}"
    if len(found.undecided) == num_common:
        return "undecided", (
            "no difference can be shown of any point, which takes times of two repeats at least; "
            "measure both with repeat=0,1,2 or more"
        )
    return None


def _trace(given: Mapping[str, str]) -> ExitStatus:
    results = _stored(given["folder"], "folder")
    try:
        trace = chrome_trace(results.runs, results.spans)
    except ValueError as error:
        raise ValueError(f"{results.folder}: {error}") from error
    path = Path(given.get("output") or results.folder / TRACE_FILE)
    cache.write_json(path, trace)
    if given.get("report") == "json":
        said = {"status": "ok", "exit_reason": ExitStatus.OK.reason}
        print(json.dumps(said | {"trace": str(path), "events": len(trace["traceEvents"])}))
    else:
        print(f"{path}: {len(trace['traceEvents'])} events, for Perfetto or chrome://tracing")
    return ExitStatus.OK


def _report(given: Mapping[str, str]) -> ExitStatus:
    from tpi_bench.app.report_tasks import report  # who else is to wait for it?

    return report(given)


def _ledger(given: Mapping[str, str]) -> ExitStatus:
    from tpi_bench.app.report_tasks import ledger

    return ledger(given)


def _reproduce(given: Mapping[str, str]) -> ExitStatus:
    from tpi_bench.app.reproduce import reproduce

    return reproduce(given)


def _stored(folder: str, key: str) -> Results:
    """A results folder with points. Raises ValueError."""
    try:
        found = load(folder)
    except ValueError as error:
        raise ValueError(f"{key}={folder}: {error}") from error
    if not len(found):
        raise ValueError(f"{key}={folder} has no point")
    return found


def _share(typed: str) -> float:
    """`5%` and `0.05` are the same. Raises ValueError."""
    try:
        value = float(typed.removesuffix("%")) / (100 if typed.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if value > 1 and not typed.endswith("%"):
        raise ValueError(
            f"fail_above={typed} would be {value:.0%}; write fail_above={typed}% for "
            f"{value / 100:.2g} of a point's time, or {value:.0%} if that is what is meant"
        )
    if not 0 <= value < math.inf:
        raise ValueError(
            f"fail_above={typed} is not allowed; it is a share, as 5% or 0.05, by which a point "
            "may be slower"
        )
    return value


FOLDER_TASKS = {
    "compare": FolderTask(
        _compare,
        ("a", "b"),
        ("fail_above",),
        "python -m tpi_bench task=compare a=DIR b=DIR [fail_above=5%] [report=json]",
    ),
    "trace": FolderTask(
        _trace,
        ("folder",),
        ("output",),
        "python -m tpi_bench task=trace DIR [output=FILE] [report=json]",
    ),
    "report": FolderTask(
        _report,
        (),
        ("folders", "output", "ledger", "notes"),
        "python -m tpi_bench task=report [DIR ...] [output=FILE] [ledger=FILE] [notes=FILE|none] "
        "[report=json]",
        takes_several=True,
    ),
    "ledger": FolderTask(
        _ledger,
        (),
        ("folders", "ledger"),
        "python -m tpi_bench task=ledger [DIR ...] [ledger=FILE] [report=json]",
        takes_several=True,
    ),
    "reproduce": FolderTask(
        _reproduce,
        (),
        ("only", "folder", "plan", "estimate", "cache_dir", "ledger", "notes"),
        "python -m tpi_bench task=reproduce [only=NAME,NAME] [folder=DIR] [plan=FILE] "
        "[estimate=true] [cache_dir=DIR] [ledger=FILE] [notes=FILE|none]",
        takes_several=True,
    ),
}
