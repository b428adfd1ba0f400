"""What `task=advise` tells: which way is fastest, why others are not, and what would help.

A function of the rows that were run and of `advice.json` beside them, which says what no row does:
what was looked at and skipped by its bound. `measure/advise.py` makes it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpi_bench.report.names import system_name
from tpi_bench.report.rows import DeviceRow, Record, RunRow

FILE = "advice.json"
# Perplexity of the demo model on its page of text by precision: results/tab_equivalence_precisions.
PERPLEXITY = {"float32": 23.81, "bfloat16": 23.91, "q8": 23.99, "q4": 29.86}


@dataclass(kw_only=True)
class Line:
    """A line of the table of the best.

    `point` is its row, `long_point` that with the longer prompt; `team` the devices by letter, the
    master first. `weights_s`, `links_s` and `disk_s` are the bound that the search had.
    """

    point: str
    team: str
    limited_by: str
    bound_s: float
    weights_s: float
    links_s: float
    disk_s: float
    long_point: str | None = None


@dataclass(kw_only=True)
class Kind:
    """The best of a system, a precision or a number of devices (`of`), and why it is not the best.

    `point` is its row where one was run and gave an answer; else `bound_s` is all that is known,
    and where that is none, it does not fit.
    """

    of: str
    name: str
    point: str | None
    bound_s: float | None
    why: str


@dataclass(kw_only=True)
class Change:
    """Something that could be done to the household, and the best way then."""

    words: str
    point: str | None  # none: its bound says that it does not help


@dataclass(kw_only=True)
class Advice:
    """All that is told beside rows. `devices` are `A: words`, one each."""

    model: str
    network: str
    devices: list[str]
    weights_gb: dict[str, float]
    memory_gb: float
    best: list[Line]
    kinds: list[Kind]
    changes: list[Change]
    num_ways: int
    num_run: int
    num_lacking: int
    skipped: dict[str, int]
    num_left: int
    left_bound_s: float | None
    took_s: float
    commands: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """As `advice.json`."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (folder / FILE).write_text(text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Advice:
        """Raises ValueError where there is none."""
        path = folder / FILE
        if not path.is_file():
            raise ValueError(f"{folder} holds no {FILE}; give a results folder of task=advise")
        found = json.loads(path.read_text())
        parts = {"best": Line, "kinds": Kind, "changes": Change}
        return cls(
            **{
                key: [parts[key](**each) for each in value] if key in parts else value
                for key, value in found.items()
            }
        )


@dataclass(frozen=True)
class Rows:
    """The rows of a folder by point."""

    runs: Mapping[str, RunRow]
    devices: Mapping[str, Sequence[DeviceRow]]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Rows:
        found = {record.run.point: record for record in records}
        return cls(
            {point: record.run for point, record in found.items()},
            {point: record.devices for point, record in found.items()},
        )


def advice_text(advice: Advice, rows: Rows) -> str:
    """For people."""
    parts = [
        _heading(advice),
        _best_table(advice, rows),
        _kinds_text(advice, rows),
        _changes_text(advice, rows),
        _search_text(advice),
        "\n".join(f"{where}:\n  {command}" for where, command in advice.commands.items()),
        "\n".join(f"note: {note}" for note in advice.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def advice_report(advice: Advice, rows: Rows, results: Path | None) -> dict[str, Any]:
    """For `report=json`, beside `status` and `exit_reason`. What is not known is null."""
    return {
        "results": None if results is None else str(results),
        "model": advice.model,
        "network": advice.network,
        "devices": advice.devices,
        "best": [_line_report(line, rows) for line in advice.best],
        "others": [_kind_report(kind, rows) for kind in advice.kinds],
        "changes": [_change_report(change, rows) for change in advice.changes],
        "search": {
            "ways": advice.num_ways,
            "run": advice.num_run,
            "do_not_fit": advice.num_lacking,
            "skipped_by_bound": advice.skipped,
            "left": advice.num_left,
            "left_bound_s": advice.left_bound_s,
            "took_s": round(advice.took_s, 2),
        },
        "commands": advice.commands,
        "notes": advice.notes,
    }


def _heading(advice: Advice) -> str:
    sizes = ", ".join(f"{gb:.3g} GB in {weights}" for weights, gb in advice.weights_gb.items())
    return "\n".join(
        [
            f"{advice.model}, {sizes}; {advice.memory_gb:.3g} GB of memory together, "
            f"{advice.network}",
            *(f"  {words}" for words in advice.devices),
        ]
    )


def _best_table(advice: Advice, rows: Rows) -> str:
    if not advice.best:
        return "Nothing fits: see below what does not, and what would help."
    lengths = [f"TTFT {_prompt(rows, line.point)}" for line in advice.best[:1]]
    lengths += [f"TTFT {_prompt(rows, line.long_point)}" for line in advice.best[:1]]
    head = ["", "system", "devices", "weights", "a token", "tokens/s", *lengths]
    head += ["memory of each, GB", "limited by", "perplexity*"]
    lines = [head]
    for number, line in enumerate(advice.best, start=1):
        run = rows.runs[line.point]
        held = "+".join(f"{row.ledger_bytes / 1e9:.1f}" for row in rows.devices[line.point])
        lines.append(
            [
                str(number),
                system_name(run.cells()),
                line.team,
                run.weights,
                seconds_text(run.token_latency_s),
                f"{1 / run.token_latency_s:.3g}",
                seconds_text(run.ttft_s),
                _long_ttft(line, rows),
                held,
                line.limited_by,
                f"{PERPLEXITY[run.weights]:.2f}" if run.weights in PERPLEXITY else "-",
            ]
        )
    text = aligned(lines)
    return (
        f"{text}\n* of the demo model (SmolLM2-135M) with weights of that precision, lower is "
        "better: what it costs a larger model is less"
    )


def _prompt(rows: Rows, point: str | None) -> str:
    run = rows.runs.get(point or "")
    return str(run.prompt_tokens) if run is not None and run.prompt_tokens else "long"


def _long_ttft(line: Line, rows: Rows) -> str:
    run = rows.runs.get(line.long_point or "")
    if run is None:
        return "-"
    return seconds_text(run.ttft_s) if run.status == "ok" else "no room"


def _kinds_text(advice: Advice, rows: Rows) -> str:
    """The best of each kind beside the best of all."""
    parts = []
    titles = {"devices": "By number of devices", "weights": "By precision", "system": "By system"}
    for of, title in titles.items():
        lines = [
            [f"  {kind.name}", _kind_time(kind, rows), kind.why]
            for kind in advice.kinds
            if kind.of == of
        ]
        if len(lines) > 1:
            parts.append(f"{title}, the best of each:\n{aligned(lines)}")
    return "\n".join(parts)


def _kind_time(kind: Kind, rows: Rows) -> str:
    run = rows.runs.get(kind.point or "")
    if run is not None:
        return seconds_text(run.token_latency_s)
    return f"> {seconds_text(kind.bound_s)}" if kind.bound_s else "-"


def _changes_text(advice: Advice, rows: Rows) -> str:
    """What would help, most first."""
    if not advice.changes:
        return ""
    best_s = _best_s(advice, rows)
    lines = []
    for change in sorted(advice.changes, key=lambda change: _changed_s(change, rows)):
        changed_s = _changed_s(change, rows)
        if not changed_s < 0.99 * best_s:
            lines.append([f"  {change.words}", "-", "no gain"])
            continue
        run = rows.runs[change.point or ""]
        gain = f"{best_s / changed_s:.2f} times as fast" if math.isfinite(best_s) else "it fits"
        how = f"{gain} ({system_name(run.cells())}, {run.device})"
        lines.append([f"  {change.words}", seconds_text(changed_s), how])
    return f"What one change would do (a token then, in the same precision):\n{aligned(lines)}"


def _best_s(advice: Advice, rows: Rows) -> float:
    return rows.runs[advice.best[0].point].token_latency_s if advice.best else math.inf


def _changed_s(change: Change, rows: Rows) -> float:
    run = rows.runs.get(change.point or "")
    return run.token_latency_s if run is not None and run.status == "ok" else math.inf


def _search_text(advice: Advice) -> str:
    skipped = ", ".join(f"{count} by {what}" for what, count in advice.skipped.items())
    text = (
        f"{advice.num_ways} ways to run it: {advice.num_run} were run in virtual time, "
        f"{advice.num_lacking} do not fit for certain"
    )
    if skipped:
        text += f", and bounds put the rest out of reach ({skipped})"
    text += f". It took {advice.took_s:.0f} s."
    if advice.num_left:
        text += (
            f" {advice.num_left} ways were left for lack of time; each takes at least "
            f"{seconds_text(advice.left_bound_s or 0.0)} a token, so that what is faster above is "
            "certain to be so."
        )
    return text


def seconds_text(seconds: float) -> str:
    """As `812 ms` or `1.29 s`."""
    if math.isnan(seconds):
        return "-"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns side by side."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _line_report(line: Line, rows: Rows) -> dict[str, Any]:
    run, longer = rows.runs[line.point], rows.runs.get(line.long_point or "")
    return {
        "point": line.point,
        "system": system_name(run.cells()),
        "devices": line.team,
        "weights": run.weights,
        "token_latency_s": run.token_latency_s,
        "tokens_per_s": 1 / run.token_latency_s,
        "ttft_s": run.ttft_s,
        "long_ttft_s": None if longer is None or longer.status != "ok" else longer.ttft_s,
        "memory_bytes": [row.ledger_bytes for row in rows.devices[line.point]],
        "limited_by": line.limited_by,
        "perplexity_of_demo_model": PERPLEXITY.get(run.weights),
        "typed": run.overrides,
    }


def _kind_report(kind: Kind, rows: Rows) -> dict[str, Any]:
    run = rows.runs.get(kind.point or "")
    return dataclasses.asdict(kind) | {
        "token_latency_s": None if run is None else run.token_latency_s
    }


def _change_report(change: Change, rows: Rows) -> dict[str, Any]:
    changed_s = _changed_s(change, rows)
    return dataclasses.asdict(change) | {
        "token_latency_s": changed_s if math.isfinite(changed_s) else None
    }
