"""The table of any sweep: what was swept, how each point ended, repeats as median and range.

What was swept is what was typed (`overrides`), so that a setting without a column of its own tells
points apart too.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tpi_bench.report.names import system_name
from tpi_bench.report.overrides import texts_of
from tpi_bench.report.rows import SETTING_PREFIX, Asked, RunRow

if TYPE_CHECKING:
    import pandas as pd

_FOLDED = "repeat"
_NOT_ASKED = ("experiment", "point", "config_hash", "overrides", _FOLDED, "label", "variant")
_TIMES = {
    "TTFT ms": "ttft_s",
    "ms a token": "token_latency_s",
    "p99 ms": "token_latency_p99_s",
    "jitter ms": "token_jitter_s",
    "limit ms": "limit_token_s",
}
_IF_KNOWN = ("p99 ms", "jitter ms")
_BUSY_NOTE = (
    "* measured on a busy host, which may do better: measure it anew when nothing else runs "
    "(how busy: busy_cores_start, busy_cores_probe and steal_share of runs.csv)"
)
_SWEPT = "swept: "  # no column of the run table begins so


def overrides_of(run: RunRow) -> list[str]:
    """What was typed or swept for a point, one text a setting."""
    return texts_of(run.overrides)


def varying(points: Iterable[Sequence[str]]) -> list[list[str]]:
    """Of what was typed for each point, what is not the same for all."""
    given = [list(texts) for texts in points]
    common = set(given[0]).intersection(*given[1:]) if given else set()
    return [[text for text in texts if text not in common] for texts in given]


def sweep_table(runs: pd.DataFrame) -> str:
    """A line for each configuration, in the order in which they were measured."""
    if runs.empty:
        return "no point was measured"
    frame = sweep_frame(runs)
    is_busy = _on_busy_host(runs)
    frame.loc[is_busy, "status"] += "*"
    text = frame.to_string(index=False)
    return f"{text}\n{_BUSY_NOTE}" if any(is_busy) else text


def _on_busy_host(runs: pd.DataFrame) -> list[bool]:
    """Of each line, whether one of its points was measured so."""
    found: dict[str, bool] = {}
    for row in map(RunRow.from_cells, runs.to_dict("records")):
        is_busy = row.status == "ok" and row.is_of_busy_host
        found[row.config_hash] = is_busy or found.get(row.config_hash, False)
    return list(found.values())


def sweep_frame(runs: pd.DataFrame) -> pd.DataFrame:
    """The same as a table of texts, of runs that are not empty."""
    import pandas as pd

    keys = _keys(runs)
    runs = _with_columns(runs, [*_TIMES.values(), *_TOLD_BY.values(), *_MORE])
    times = {k: v for k, v in _TIMES.items() if k not in _IF_KNOWN or runs[v].notna().any()}
    known = [name for name in _MORE if runs[_TOLD_BY.get(name, name)].notna().any()]
    is_repeated = bool(runs.config_hash.duplicated().any())
    shown = runs[["config_hash", "status", *times.values(), *known]].join(keys)
    points: dict[str, list[dict[Any, Any]]] = {}
    for row in shown.to_dict("records"):
        points.setdefault(row["config_hash"], []).append(row)
    lines = []
    for repeats in points.values():
        line = {key: repeats[0][key] for key in keys} | {"status": _status(repeats)}
        if is_repeated:
            line["repeats"] = len(repeats)
        for name, column in times.items():
            line[name] = _folded(row[column] * 1e3 for row in repeats)
        for column in known:
            name, fold = _MORE[column]
            line[name] = fold(row[column] for row in repeats)
        lines.append(line)
    return pd.DataFrame(lines).rename(columns=_short)


def _with_columns(runs: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """Of a table that is older than a column nothing is known there."""
    lacking = [name for name in dict.fromkeys(names) if name not in runs]
    return runs.reindex(columns=[*runs.columns, *lacking])


def _keys(runs: pd.DataFrame) -> pd.DataFrame:
    """A column for each setting that varies; the system's name where none does."""
    import pandas as pd

    typed = [texts_of(text) for text in _column(runs)]
    rows = [dict(text.partition("=")[::2] for text in texts) for texts in varying(typed)]
    found = pd.DataFrame(rows, index=runs.index).fillna("-")
    found = found.drop(columns=[_FOLDED], errors="ignore")
    if "testbed.num_devices" not in found and runs.num_devices.nunique() > 1:
        found["devices"] = runs.num_devices
    if not all(typed):  # older records do not say
        found = found.join(_asked(runs).drop(columns=found.columns, errors="ignore"))
    if found.columns.empty:
        found["system"] = [system_name(row) for row in runs.to_dict("records")]
    return found.add_prefix(_SWEPT)


def _short(name: str) -> str:
    return str(name).removeprefix(_SWEPT)


def _column(runs: pd.DataFrame) -> list[object]:
    return list(runs["overrides"]) if "overrides" in runs else [None] * len(runs)


def _asked(runs: pd.DataFrame) -> pd.DataFrame:
    """What varies of the columns that say what was asked."""
    names = [each.name for each in fields(Asked) if each.name not in _NOT_ASKED]
    names += [name for name in runs.columns if str(name).startswith(SETTING_PREFIX)]
    return runs[[n for n in names if n in runs and runs[n].nunique(dropna=False) > 1]]


def _status(repeats: Sequence[Mapping[Any, Any]]) -> str:
    """`ok`, or how many ended in which way."""
    counts = Counter(row["status"] for row in repeats)
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _folded(values: Iterable[float]) -> str:
    """The median, and from where to where where they are several."""
    found = [value for value in values if value == value]
    if not found:
        return "-"
    middle, least, most = map(_number, (statistics.median(found), min(found), max(found)))
    return middle if least == most else f"{middle} ({least} to {most})"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _verdict(values: Iterable[bool | None]) -> str:
    found = [value for value in values if value is not None and value == value]
    if not found:
        return "-"
    return "equal" if all(found) else "DIFFER"


_TOLD_BY = {"tokens_per_pass": "num_proposed"}  # which all points have, also where none is drafted
# Columns that are shown where any point has them: how they are called and folded.
_MORE: dict[str, tuple[str, Callable[[Iterable[Any]], str]]] = {
    "joules_per_token": ("J a token", _folded),
    "tokens_per_pass": ("tokens a pass", _folded),
    "tokens_equal": ("tokens", _verdict),
    "perplexity": ("perplexity", _folded),
}
