"""The entries of a ledger as they are written: claims, what is measured of each, and its rules.

Numbers are never among them but as thresholds of rules, and as what others published (`given`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

VERDICTS = ("holds", "holds when", "does not hold", "not shown")
TAKES = ("only", "least", "most", "median", "count")
_ROOT = Path(__file__).resolve().parents[3]
_IN_WHEEL = Path(__file__).resolve().parent / "ledger.yaml"
LEDGER = _IN_WHEEL if _IN_WHEEL.is_file() else _ROOT / "results" / "ledger.yaml"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number from rows.

    Of the rows of the folder `rows` that `where` picks (a query, as of pandas): the median over
    repeats of `column`, which may be an expression over columns. Rows of several configurations
    are refused, unless `pick` says min or max of them. With `over` it is the ratio to the same of
    other rows, repeat by repeat. `each` makes it one number a group of these columns, of which
    `take` chooses; count counts groups, those `above` or `below` a bound where one is given.
    """

    rows: str
    where: str = ""
    column: str = "token_latency_s"
    pick: str | None = None
    over: Mapping[str, Any] | None = None
    each: tuple[str, ...] = ()
    take: str = "only"
    above: float | None = None
    below: float | None = None


@dataclass(frozen=True, kw_only=True)
class Derived:
    """An expression over quantities that stand before it."""

    of: str


@dataclass(frozen=True, kw_only=True)
class Given:
    """A number that others published, and where."""

    given: float
    source: str


Measure = Quantity | Derived | Given


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`verdict` where `condition`, an expression over the entry's quantities, is true."""

    condition: str
    verdict: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A claim. `measured` is a sentence with its quantities in braces.

    `made_by` is what is typed for rows of a folder that is not called after its experiment.
    """

    question: int
    claim: str
    by: str
    setting: str
    quantities: Mapping[str, Measure]
    measured: str
    rules: Sequence[Rule]
    note: str = ""
    made_by: Mapping[str, str] = field(default_factory=dict)

    def command_of(self, folder: str) -> str:
        """How the rows of a folder are made."""
        return f"python -m tpi_bench {self.made_by.get(folder, f'+experiment={folder}')}"

    @property
    def folders(self) -> list[str]:
        """Results folders that it is measured from, in the order of its quantities."""
        found = []
        for quantity in self.quantities.values():
            if isinstance(quantity, Quantity):
                found += [quantity.rows, (quantity.over or {}).get("rows", quantity.rows)]
        return list(dict.fromkeys(found))


def read_entries(path: Path = LEDGER) -> list[Entry]:
    """All entries in order. Raises ValueError where the file is none or one makes no sense."""
    try:
        written = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"ledger={path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"ledger={path} cannot be read as YAML: {said}") from error
    if not isinstance(written, list) or not all(isinstance(each, dict) for each in written):
        raise ValueError(f"ledger={path} is no list of claims (see results/ledger.yaml)")
    return [_entry(each, f"{path}, claim {number}") for number, each in enumerate(written, 1)]


def _entry(written: dict[str, Any], place: str) -> Entry:
    values = dict(written)
    quantities = values.pop("quantities", None) or {}
    rules = values.pop("rules", None) or []
    entry: Entry = _made(
        Entry,
        {
            **values,
            "quantities": {
                name: _quantity(each, f"{place}, {name}") for name, each in quantities.items()
            },
            "rules": [_rule(each, place) for each in rules],
        },
        place,
    )
    return entry


def _quantity(written: dict[str, Any], place: str) -> Measure:
    if "given" in written:
        found: Given = _made(Given, written, place)
        if not isinstance(found.given, (int, float)):
            raise ValueError(f"{place}: given={found.given} is no number (YAML wants 3.3e+9)")
        return found
    if "of" in written:
        derived: Derived = _made(Derived, written, place)
        return derived
    quantity: Quantity = _made(Quantity, {**written, "each": tuple(written.get("each", ()))}, place)
    if quantity.take not in TAKES or (quantity.take == "only") == bool(quantity.each):
        raise ValueError(
            f"{place}: take={quantity.take} is not allowed; with `each` it is one of "
            f"{', '.join(TAKES[1:])}, without it is left out"
        )
    if quantity.pick not in (None, "min", "max"):
        raise ValueError(f"{place}: pick={quantity.pick} is not allowed; it may be min or max")
    return quantity


def _rule(written: dict[str, Any], place: str) -> Rule:
    rule: Rule = _made(Rule, written, place)
    if rule.verdict not in VERDICTS:
        raise ValueError(
            f"{place}: verdict={rule.verdict} is unknown; choose one of {', '.join(VERDICTS)}"
        )
    return rule


def _made(cls: type, values: Mapping[str, Any], place: str) -> Any:
    known = {each.name: each for each in fields(cls)}
    unknown = [name for name in values if name not in known]
    missing = [
        name
        for name, each in known.items()
        if name not in values and each.default is MISSING and each.default_factory is MISSING
    ]
    if unknown or missing:
        wrong = f"there is no {unknown[0]}" if unknown else f"{missing[0]} is missing"
        raise ValueError(f"{place}: {wrong}; it may have {', '.join(known)}")
    return cls(**values)
