"""What `task=reproduce` is going to do: its experiments, what is done, how long the rest takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from tpi_bench.app.arguments import as_typed
from tpi_bench.app.typed import did_you_mean
from tpi_bench.report.durations import seconds_each
from tpi_bench.report.folder import ResultsFolder
from tpi_bench.report.results import load

_ROOT = Path(__file__).resolve().parents[2]
_IN_WHEEL = Path(__file__).resolve().parent / "reproduce.yaml"
PLAN = _IN_WHEEL if _IN_WHEEL.is_file() else _ROOT / "results" / "reproduce.yaml"
COMMITTED = _ROOT / "results"
MARK = "reproduced.json"  # left in a folder when its experiment has come to its end


@dataclass(frozen=True, kw_only=True)
class Step:
    """An experiment of the set: `name` is its folder's, `typed` what makes it smaller."""

    name: str
    experiment: str = ""
    typed: list[str] = field(default_factory=list)
    where: str = ""
    cache_gb: float = 0.0

    @property
    def arguments(self) -> list[str]:
        """Behind `python -m tpi_bench`."""
        return [f"+experiment={self.experiment or self.name}", *self.typed]


def read_steps(path: Path, only: Sequence[str] = ()) -> list[Step]:
    """Raises ValueError: no such file, no list of steps, or a name in `only` that is not there."""
    try:
        written = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"plan={path} cannot be read: {reason}") from error
    if not isinstance(written, list):
        raise ValueError(f"plan={path} is no list of experiments (see results/reproduce.yaml)")
    steps = [_step(each, f"plan={path}, step {number}") for number, each in enumerate(written, 1)]
    names = [step.name for step in steps]
    for name in only:
        if name not in names:
            raise ValueError(
                f"only={name} is no experiment of the set; {did_you_mean(name, names)}"
            )
    return [step for step in steps if not only or step.name in only]


def _step(written: Any, place: str) -> Step:
    known = [each.name for each in fields(Step)]
    if not isinstance(written, dict) or "name" not in written:
        raise ValueError(f"{place} has no name; a step may have {', '.join(known)}")
    unknown = [key for key in written if key not in known]
    if unknown:
        raise ValueError(f"{place}: there is no {unknown[0]}; it may have {', '.join(known)}")
    return Step(**written)


@dataclass(frozen=True)
class Estimate:
    """Seconds are None where no committed rows tell them."""

    seconds: float | None
    rows_bytes: int


def estimate_of(step: Step, folder: Path, committed: Path = COMMITTED) -> Estimate:
    """From an earlier run of the same arguments in `folder`, else from committed rows."""
    mark = read_mark(folder / step.name)
    if mark is not None and mark["arguments"] == step.arguments:
        return Estimate(mark["seconds"], size_of(folder / step.name))
    source = committed / step.name
    try:
        runs = load(source).runs
        each = seconds_each(runs)
        chosen = runs.query(step.where, engine="python") if step.where else runs
    except ValueError:
        return Estimate(None, 0)
    share = len(chosen) / max(1, len(runs))
    return Estimate(float(each[chosen.index].sum()), round(size_of(source) * share))


def size_of(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_mark(folder: Path) -> Mapping[str, Any] | None:
    """What a finished experiment left; None of one that is not, or not of this set."""
    path = folder / MARK
    return json.loads(path.read_text()) if path.is_file() else None


def state_of(step: Step, folder: Path, commit: str) -> str:
    """`done`, `again` (finished for another commit or as another set), `resume` or `new`.

    Raises ValueError for a folder that is somebody else's.
    """
    target = folder / step.name
    mark = read_mark(target)
    if mark is not None:
        is_same = mark["commit"] == commit and mark["arguments"] == step.arguments
        return "done" if is_same else "again"
    results = ResultsFolder(target)
    if results.is_unused:
        return "new"
    typed = [as_typed(text) for text in results.arguments or []]
    kept = [text for text in typed if not text.startswith(("output_dir=", "cache_dir="))]
    if sorted(kept) == sorted(step.arguments) and not results.is_finished:
        commits = {record.run.commit for record in results.records()}
        return "resume" if commits <= {commit} else "again"
    raise ValueError(
        f"{target} holds results that this set did not make; choose another folder with "
        "folder=DIR, or remove it"
    )


def told(
    steps: Sequence[Step], states: Mapping[str, str], estimates: Mapping[str, Estimate]
) -> str:
    """Each step in a line, and the sum of what is left."""
    words = {"done": "done already", "again": "again", "resume": "goes on", "new": ""}
    lines, total, unknown = [], 0.0, 0
    for step in steps:
        state, estimate = states[step.name], estimates[step.name]
        time = "unknown" if estimate.seconds is None else f"{estimate.seconds / 60:.1f} min"
        lines.append(f"  {step.name:<28}{time:>10}   {words[state]}".rstrip())
        if state != "done":
            unknown += estimate.seconds is None
            total += estimate.seconds or 0.0
    rest = f", and {unknown} of which no rows tell" if unknown else ""
    left = [step for step in steps if states[step.name] != "done"]
    if not left:
        return "\n".join([*lines, "nothing is left to run"])
    minutes = max(1, round(total / 60))
    lines.append(
        f"about {minutes} minute{'s' * (minutes != 1)}{rest}, "
        f"for {len(left)} of {len(steps)} experiments"
    )
    return "\n".join(lines)


def disk_told(
    steps: Sequence[Step], estimates: Mapping[str, Estimate], cache: Path, folder: Path
) -> str:
    """What rows and block files take, and what is free."""
    block_gb = sum(step.cache_gb for step in steps)
    rows_mb = sum(estimates[step.name].rows_bytes for step in steps) / 1e6
    there_gb, free_gb = size_of(cache) / 1e9, _free_bytes(cache) / 1e9
    note = "" if block_gb <= free_gb else "; that may be too little: cache_dir=DIR is another place"
    return (
        f"disk: up to {block_gb:.0f} GB of models and block files in {cache} (which holds "
        f"{there_gb:.0f} GB now; {free_gb:.0f} GB are free there), {rows_mb:.0f} MB of rows and "
        f"figures in {folder}{note}"
    )


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
