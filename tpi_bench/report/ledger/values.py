"""A ledger's quantities, from rows: medians over repeats, their ratios, and intervals of both."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tpi_bench.report.ledger.entries import Derived, Given, Measure, Quantity
from tpi_bench.report.statistics import median_interval

if TYPE_CHECKING:
    import pandas as pd

_UNITS = {"s": (1, " s"), "ms": (1e3, " ms"), "GB": (1e-9, " GB"), "%": (100, " %"), "": (1, "")}


class NoRows(LookupError):
    """A folder that is not there, or that has no such row: `folder` names it."""

    def __init__(self, folder: str, message: str) -> None:
        super().__init__(message)
        self.folder = folder


@dataclass(frozen=True)
class Value:
    """A number and where it may lie; `place` is the group that it was taken from.

    `is_exact` is what modelled time gives, the same whenever it is run: its ends are itself. What
    was measured once has no ends (NaN), so that no rule about them is true. What is given or
    counted is written as it is, the others with three digits: 0.500, 1.00.
    """

    middle: float
    low: float
    high: float
    is_exact: bool
    place: str = ""
    is_plain: bool = False

    @property
    def is_interval(self) -> bool:
        return not self.is_exact and not math.isnan(self.low)

    def __format__(self, unit: str) -> str:
        """With a unit of `_UNITS`: as `1.2 s`, `1.2 [1.1, 1.3] s`."""
        factor, name = _UNITS[unit]
        short = _as_it_is if self.is_plain else _short
        middle, low, high = (short(end * factor) for end in (self.middle, self.low, self.high))
        return f"{middle} [{low}, {high}]{name}" if self.is_interval else f"{middle}{name}"


def _short(value: float) -> str:
    """Three digits, as people write them."""
    if math.isnan(value):
        return "unknown"
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")


def _as_it_is(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def value_of(
    quantity: Measure, tables: Mapping[str, pd.DataFrame], before: Mapping[str, Value]
) -> Value:
    """Of one of an entry's quantities; those that stand before it are known.

    Raises NoRows where rows are missing, ValueError where the quantity makes no sense.
    """
    if isinstance(quantity, Derived):
        return _derived(quantity, before)
    if isinstance(quantity, Given):
        return Value(quantity.given, quantity.given, quantity.given, True, is_plain=True)
    groups = dict(_by_group(quantity, tables))
    if not quantity.each:
        return _value(*groups[""])
    middles = {place: float(values.median()) for place, (values, _) in groups.items()}
    if quantity.take == "count":
        count = sum(_is_beyond(middle, quantity) for middle in middles.values())
        return Value(count, count, count, True, f"of {len(groups)}", is_plain=True)
    by_size = sorted(middles, key=lambda place: middles[place])
    at = {"least": 0, "most": -1, "median": (len(by_size) - 1) // 2}[quantity.take]
    return replace(_value(*groups[by_size[at]]), place=by_size[at])


def _is_beyond(middle: float, quantity: Quantity) -> bool:
    """Above or below what is asked; without either, whatever it is."""
    if quantity.above is None and quantity.below is None:
        return True
    is_above = quantity.above is not None and middle > quantity.above
    return is_above or (quantity.below is not None and middle < quantity.below)


def _derived(quantity: Derived, before: Mapping[str, Value]) -> Value:
    """Without an interval where one of its parts is not exact."""
    number = float(evaluated(quantity.of, before))
    is_exact = all(value.is_exact for value in before.values())
    end = number if is_exact else math.nan
    return Value(number, end, end, is_exact)


def evaluated(expression: str, values: Mapping[str, Value]) -> Any:
    """Over `x`, `x_low` and `x_high` of each quantity x. Raises ValueError."""
    import pandas as pd

    names: dict[str, float] = {}
    for name, value in values.items():
        names |= {name: value.middle, f"{name}_low": value.low, f"{name}_high": value.high}
    try:
        return pd.eval(expression, engine="python", local_dict=names, global_dict={})
    except Exception as error:  # pandas raises what it finds, a SyntaxError too
        said = " ".join(str(error).split())
        raise ValueError(f"{expression!r} cannot be evaluated: {said}") from error


def _by_group(
    quantity: Quantity, tables: Mapping[str, pd.DataFrame]
) -> Iterator[tuple[str, tuple[pd.Series, bool]]]:
    """Values by repeat, of a ratio those of its pairs, and whether they are exact."""
    ours = _picked(quantity, tables)
    theirs = None
    if quantity.over is not None:
        inherited = {"rows": quantity.rows, "column": quantity.column, "each": quantity.each}
        theirs = _picked(Quantity(**{**inherited, **quantity.over}), tables)
    groups = [group for group in ours if theirs is None or group in theirs]
    if not groups:
        raise NoRows(quantity.rows, f"no group of {', '.join(quantity.each)} has both sides")
    for group in groups:
        values, is_exact = ours[group]
        if theirs is not None:
            below, is_exact_too = theirs[group]
            is_exact = is_exact and is_exact_too
            paired = values.index.intersection(below.index)
            values = values[paired] / below[paired] if len(paired) else values / below.median()
        yield group, (values, is_exact)


def _value(values: pd.Series, is_exact: bool) -> Value:
    if is_exact:
        middle = float(values.median())
        return Value(middle, middle, middle, True)
    interval = median_interval(values)
    return Value(interval.middle, interval.low, interval.high, False)


def _picked(
    quantity: Quantity, tables: Mapping[str, pd.DataFrame]
) -> dict[str, tuple[pd.Series, bool]]:
    """By group: the values by repeat of its one configuration, and whether they are exact."""
    rows = _rows(quantity, tables)
    if not quantity.each:
        return {"": _configuration(quantity, rows)}
    keys = list(quantity.each)
    groups = rows.groupby(keys, sort=False, dropna=False)
    return {
        ", ".join(f"{key} {_plain(value)}" for key, value in zip(keys, names, strict=True)):
        _configuration(quantity, own)
        for names, own in groups
    }  # fmt: skip


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rows(quantity: Quantity, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """With the quantity as a column of its own."""
    if quantity.rows not in tables:
        raise NoRows(quantity.rows, f"there are no rows of {quantity.rows}")
    rows = _needed(quantity, tables[quantity.rows])
    try:
        if quantity.where:
            rows = rows.query(quantity.where)
        rows = rows.assign(_value=rows.eval(quantity.column))
    except Exception as error:  # pandas raises what it finds, a SyntaxError too
        said = " ".join(str(error).split())
        raise ValueError(
            f"rows of {quantity.rows} cannot be asked {quantity.where!r} for {quantity.column!r}: "
            f"{type(error).__name__}: {said}"
        ) from error
    rows = rows[rows["_value"].notna()]
    if "status" in rows:
        rows = rows[rows.status == "ok"]
    if rows.empty:
        raise NoRows(quantity.rows, f"no row of {quantity.rows} has {quantity.where}")
    return rows


def _needed(quantity: Quantity, rows: pd.DataFrame) -> pd.DataFrame:
    """Without columns that nothing asks for: of hundreds, each selection would copy all."""
    named = re.findall(r"\w+", f"{quantity.where} {quantity.column}")
    asked = {*named, *quantity.each, "config_hash", "repeat", "cost", "status"}
    return rows[[column for column in rows if column in asked]]


def _configuration(quantity: Quantity, rows: pd.DataFrame) -> tuple[pd.Series, bool]:
    configurations = rows.groupby("config_hash", sort=False)["_value"].median().astype(float)
    if len(configurations) > 1 and quantity.pick is None:
        raise ValueError(
            f"{len(configurations)} configurations of {quantity.rows} have {quantity.where!r}; "
            "say more, or pick: min"
        )
    which = configurations.idxmax() if quantity.pick == "max" else configurations.idxmin()
    own = rows[rows.config_hash == which]
    values = own.groupby("repeat")["_value"].median().astype(float)
    return values, bool((own.cost == "modelled").all())
