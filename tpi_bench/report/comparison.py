"""Two results folders beside each other: what became faster or slower, and what else changed.

Points are the same where their configuration is (`config_hash`), or what was typed for them if a
version has settings that the other has not. Their repeats are pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpi_bench.report.names import system_name
from tpi_bench.report.overrides import texts_of
from tpi_bench.report.statistics import Interval, paired_ratio
from tpi_bench.report.sweep_table import varying

if TYPE_CHECKING:
    import pandas as pd

METRICS = {"token_latency_s": "token latency", "ttft_s": "TTFT", "peak_anon_bytes": "peak memory"}
_MOST_NAMED = 5
_ENVIRONMENT = (
    "commit",
    "host",
    "cpu",
    "cores",
    "platform",
    "python",
    "torch_version",
    "transformers_version",
    "numpy_version",
)


@dataclass(frozen=True)
class Line:
    """A configuration that both folders have: `ratios` are those of b over a, by column."""

    name: str
    status_a: str
    status_b: str
    is_exact: bool
    ratios: Mapping[str, Interval]

    @property
    def verdict(self) -> str:
        """Of the token latency, or of the TTFT where there is no later token."""
        if self.status_a != "ok" or self.status_b != "ok":
            same = "as before" if self.status_a == self.status_b else "was"
            return f"{self.status_b}, {same}" + ("" if same == "as before" else f" {self.status_a}")
        ratio = self.time
        if ratio.num == 0:
            return "nothing to compare"
        if self.is_exact:
            return _direction(ratio.middle)
        if not ratio.is_shown:
            return "one repeat: no difference can be shown"
        return _direction(ratio.middle) if ratio.leaves_out(1) else "no difference shown"

    @property
    def time(self) -> Interval:
        latency = self.ratios["token_latency_s"]
        return latency if latency.num else self.ratios["ttft_s"]

    @property
    def is_undecided(self) -> bool:
        """Whether it has an answer in both, and too few repeats or no times to tell them apart."""
        both = self.status_a == self.status_b == "ok"
        return both and not self.is_exact and not self.time.is_shown

    def is_worse(self, fail_above: float) -> bool:
        """Whether it failed where it did not, or is shown to be slower by more than that share."""
        if self.status_a == "ok" and self.status_b != "ok":
            return True
        is_shown = self.is_exact or self.time.leaves_out(1)
        return is_shown and self.time.middle > 1 + fail_above


@dataclass(frozen=True)
class Comparison:
    """All lines, what only one folder has, and what differs around them (a's value, b's)."""

    lines: list[Line]
    only_a: list[str]
    only_b: list[str]
    environment: dict[str, tuple[str, str]]

    def worse(self, fail_above: float) -> list[Line]:
        return [line for line in self.lines if line.is_worse(fail_above)]

    @property
    def undecided(self) -> list[Line]:
        return [line for line in self.lines if line.is_undecided]


def _direction(ratio: float) -> str:
    if ratio == 1:
        return "the same"
    return "slower" if ratio > 1 else "faster"


def compared_runs(a: pd.DataFrame, b: pd.DataFrame) -> Comparison:
    """Of two run tables. Raises ValueError where they have no configuration in common."""
    keys_a, keys_b = _keys(a, b)
    names = _names(b, keys_b) | _names(a, keys_a)
    common = [key for key in dict.fromkeys(keys_a) if key in set(keys_b)]
    if not common:
        raise ValueError(
            "the two folders have no point in common: neither a configuration (config_hash) nor "
            "what was typed for one (overrides) is the same"
        )
    lines = [_line(names[key], a[keys_a == key], b[keys_b == key]) for key in common]
    return Comparison(
        lines=lines,
        only_a=[names[key] for key in dict.fromkeys(keys_a) if key not in common],
        only_b=[names[key] for key in dict.fromkeys(keys_b) if key not in common],
        environment=dict(_differences(a, b)),
    )


def _keys(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """What names each row's configuration in both."""
    import pandas as pd

    shared = set(a.config_hash) & set(b.config_hash)
    found = []
    for runs in (a, b):
        typed = [" ".join(sorted(_typed(text))) for text in _overrides(runs)]
        pairs = zip(runs.config_hash, typed, strict=True)
        keys = [name if name in shared or not text else f"typed: {text}" for name, text in pairs]
        found.append(pd.Series(keys, index=runs.index))
    return found[0], found[1]


def _overrides(runs: pd.DataFrame) -> list[Any]:
    return list(runs["overrides"]) if "overrides" in runs else [None] * len(runs)


def _typed(text: Any) -> list[str]:
    """What was typed for a point, apart from the repeat and the experiment's name."""
    return [each for each in texts_of(text) if not each.startswith(("repeat=", "name="))]


def _names(runs: pd.DataFrame, keys: pd.Series) -> dict[str, str]:
    """What sets each configuration apart from the others of its folder, or its system's name."""
    firsts = runs[~keys.duplicated()]
    parts = varying(_typed(text) for text in _overrides(firsts))
    rows = zip(keys[~keys.duplicated()], firsts.to_dict("records"), parts, strict=True)
    return {key: " ".join(own) or system_name(row) for key, row, own in rows}


def _line(name: str, a: pd.DataFrame, b: pd.DataFrame) -> Line:
    ratios = {
        column: paired_ratio(*(_by_repeat(runs, column) for runs in (b, a))) for column in METRICS
    }
    return Line(name, _status(a), _status(b), bool((a.cost == "modelled").all()), ratios)


def _by_repeat(runs: pd.DataFrame, column: str) -> pd.Series:
    good = runs[runs.status == "ok"]
    return good.groupby("repeat")[column].median()


def _status(runs: pd.DataFrame) -> str:
    """`ok` if any repeat is."""
    found = list(dict.fromkeys(runs.status))
    return "ok" if "ok" in found else str(found[0])


def _differences(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[tuple[str, tuple[str, str]]]:
    for column in _ENVIRONMENT:
        values = [", ".join(sorted(map(str, runs[column].unique()))) for runs in (a, b)]
        if values[0] != values[1]:
            yield column, (values[0], values[1])


def comparison_text(found: Comparison, fail_above: float | None) -> str:
    """A line a configuration: ratios of b over a, and what they show."""
    import pandas as pd

    cells = [
        {
            "point": line.name,
            **{name: _cell(line.ratios[column]) for column, name in METRICS.items()},
            "pairs": line.time.num,
            "b is": line.verdict,
        }
        for line in found.lines
    ]
    parts = [
        "b over a, medians of pairs with 95 % intervals",
        pd.DataFrame(cells).to_string(index=False),
    ]
    for letter, names in (("a", found.only_a), ("b", found.only_b)):
        if names:
            shown = "; ".join([*names[:_MOST_NAMED], *["..."][: len(names) > _MOST_NAMED]])
            parts.append(f"only in {letter}: {len(names)} ({shown})")
    parts += [f"{what}: a {was}; b {now}" for what, (was, now) in found.environment.items()]
    if fail_above is not None:
        worse = found.worse(fail_above)
        parts.append(
            f"{len(worse)} of {len(found.lines)} slower by more than {fail_above:.0%}, or failed"
            + (f"; {len(found.only_a)} that a has are missing in b" if found.only_a else "")
            + (
                f"; {len(found.undecided)} cannot be judged (one repeat, or no times)"
                * bool(found.undecided)
            )
            + "".join(f"\n  {line.name}: {line.verdict}" for line in worse)
        )
    return "\n".join(parts)


def comparison_report(found: Comparison, fail_above: float | None) -> dict[str, Any]:
    """The same for JSON; what is not known is null."""
    return {
        "points": [
            {
                "point": line.name,
                "verdict": line.verdict,
                "pairs": line.time.num,
                **{column: _numbers(ratio) for column, ratio in line.ratios.items()},
            }
            for line in found.lines
        ],
        "only_a": found.only_a,
        "only_b": found.only_b,
        "environment": {key: {"a": was, "b": now} for key, (was, now) in found.environment.items()},
        "worse": None if fail_above is None else [line.name for line in found.worse(fail_above)],
    }


def _cell(ratio: Interval) -> str:
    return ratio.text() if ratio.num else "-"


def _numbers(ratio: Interval) -> dict[str, float | None]:
    values = {"ratio": ratio.middle, "low": ratio.low, "high": ratio.high}
    return {name: None if math.isnan(value) else value for name, value in values.items()}
