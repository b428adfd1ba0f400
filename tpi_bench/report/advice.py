"""What `task=advise` found, beside its rows: `advice.json`, and the object of `report=json`.

It says what no row does: what was looked at and skipped by its bound, and what limits a way.
`measure/advise.py` makes it, `advice_text.py` tells it to people.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpi_bench.report.folder import ADVICE_FILE as FILE
from tpi_bench.report.names import system_name
from tpi_bench.report.rows import DeviceRow, Record, RunRow

# Perplexity of the demo model on its page of text by precision: results/tab_equivalence_precisions.
PERPLEXITY = {"float32": 23.81, "float16": 23.81, "bfloat16": 23.91, "q8": 23.99, "q4": 29.86}


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
    """Something that could be done to the household, and the best way then that was found.

    `num_left` ways were not run that may be better still; `is_run` is whether any was, or none had
    to be.
    """

    words: str
    point: str | None  # none: nothing better was found, or looked for
    num_left: int = 0
    is_run: bool = True


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

    def team_text(self, line: Line) -> str:
        """The devices of a line by letter, then by name: `B A C: dell, 2 x pi`."""
        names = dict(words.partition(":")[0].split(" ", 1) for words in self.devices)
        named = itertools.groupby(names[letter] for letter in line.team.split())
        groups = [(name, len(list(same))) for name, same in named]
        listed = [f"{count} x {name}" if count > 1 else name for name, count in groups]
        return f"{line.team}: {', '.join(listed)}"

    @classmethod
    def load(cls, folder: Path) -> Advice:
        """Raises ValueError where there is none."""
        path = folder / FILE
        if not path.is_file():
            raise ValueError(f"{folder} holds no {FILE}; give a results folder of task=advise")
        found: dict[str, Any] = json.loads(path.read_text())
        for key, part in (("best", Line), ("kinds", Kind), ("changes", Change)):
            found[key] = [part(**each) for each in found[key]]
        return cls(**found)


@dataclass(frozen=True)
class Rows:
    """The rows of a folder by point."""

    runs: Mapping[str, RunRow]
    devices: Mapping[str, Sequence[DeviceRow]]

    def token_s(self, point: str | None) -> float:
        """Infinite where there is no answer."""
        run = self.runs.get(point or "")
        return run.token_latency_s if run is not None and run.status == "ok" else math.inf

    @classmethod
    def of(cls, records: Iterable[Record]) -> Rows:
        found = {record.run.point: record for record in records}
        return cls(
            {point: record.run for point, record in found.items()},
            {point: record.devices for point, record in found.items()},
        )


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
    changed_s = rows.token_s(change.point)
    return dataclasses.asdict(change) | {
        "token_latency_s": changed_s if math.isfinite(changed_s) else None
    }
