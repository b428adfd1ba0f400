"""Verdicts: the rules of each entry applied to what its rows say. Nothing here is typed in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpi_bench.report.ledger.entries import Entry, Quantity
from tpi_bench.report.ledger.values import NoRows, Value, evaluated, value_of

if TYPE_CHECKING:
    import pandas as pd

NOT_SHOWN = "not shown"
_NAMED = re.compile(r"\{(\w+)(?::([^}]*))?\}")


@dataclass(frozen=True)
class Judged:
    """An entry with its verdict; `missing` are folders without which there is none."""

    entry: Entry
    verdict: str
    why: str
    measured: str
    values: Mapping[str, Value]
    missing: Sequence[str] = ()

    @property
    def places(self) -> str:
        """Where the least or most of a quantity was found."""
        chosen = {
            name: quantity.take
            for name, quantity in self.entry.quantities.items()
            if isinstance(quantity, Quantity) and quantity.take in ("least", "most")
        }
        return "; ".join(
            f"{self._as_said(name)} (the {take}) at {self.values[name].place}"
            for name, take in chosen.items()
            if name in self.values
        )

    def _as_said(self, name: str) -> str:
        """A value with the unit that the entry's sentences give it."""
        sentences = " ".join([self.entry.measured, *(rule.why for rule in self.entry.rules)])
        said = re.search(rf"{{{name}(:[^}}]*)?}}", sentences)
        return filled(said[0], self.values, name) if said else f"{self.values[name]}"

    @property
    def commands(self) -> list[str]:
        """How its rows are made again."""
        return [self.entry.command_of(folder) for folder in self.entry.folders]


def judged(entries: Sequence[Entry], tables: Mapping[str, pd.DataFrame]) -> list[Judged]:
    """Each entry, from run tables by the name of their folder. Raises ValueError."""
    return [_judged(entry, tables) for entry in entries]


def _judged(entry: Entry, tables: Mapping[str, pd.DataFrame]) -> Judged:
    absent = [name for name in entry.folders if name not in tables]
    if absent:
        why = f"run {' and '.join(map(entry.command_of, absent))}"
        return Judged(entry, NOT_SHOWN, why, "nothing yet", {}, absent)
    values: dict[str, Value] = {}
    place = f"question {entry.question}"
    for name, quantity in entry.quantities.items():
        try:
            values[name] = value_of(quantity, tables, values)
        except NoRows as error:
            why = f"{error}; run {entry.command_of(error.folder)}"
            return Judged(entry, NOT_SHOWN, why, "nothing yet", values, [error.folder])
        except ValueError as error:
            raise ValueError(f"{place}, {name}: {error}") from error
    measured = filled(entry.measured, values, place)
    for rule in entry.rules:
        try:
            is_true = bool(evaluated(rule.condition, values))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if is_true:
            return Judged(entry, rule.verdict, filled(rule.why, values, place), measured, values)
    unknown = [name for name, value in values.items() if math.isnan(value.low)]
    why = "no rule of this claim fits what was measured"
    if unknown:
        why = f"measured once, so without an interval: {', '.join(unknown)}"
    return Judged(entry, NOT_SHOWN, why, measured, values)


def filled(words: str, values: Mapping[str, Value], place: str) -> str:
    """A sentence with its quantities: `{star:ms}`, `{star.place}` is where it was found."""

    def put(match: re.Match[str]) -> str:
        name, unit = match[1], match[2] or ""
        is_place = name.endswith("_place")
        if name.removesuffix("_place") not in values:
            raise ValueError(f"{place}: there is no quantity {name}")
        if is_place:
            return values[name.removesuffix("_place")].place
        try:
            return format(values[name], unit)
        except KeyError as error:
            raise ValueError(f"{place}: {name} has no unit {unit!r}") from error

    return _NAMED.sub(put, words)
