"""Columns as tables know them: the Arrow schema with units and meanings, and the list for people.

`python -m tpi_bench.report.columns` writes it into `results/README.md`, and the keys of JSON there.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.report import json_keys
from tpi_bench.report.rows import (
    SETTING_PREFIX,
    SETTINGS,
    DeviceRow,
    LinkRow,
    Row,
    RunRow,
    SpanRow,
    TokenRow,
)

if TYPE_CHECKING:
    import pyarrow as pa

TABLES: dict[str, type[Row]] = {
    "runs": RunRow,
    "tokens": TokenRow,
    "devices": DeviceRow,
    "spans": SpanRow,
    "links": LinkRow,
}
README = Path(__file__).resolve().parents[2] / "results" / "README.md"
_TYPE_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: type
    unit: str
    meaning: str


_POINT = Column("point", str, "", "of the run that the row belongs to")


def columns_of(table: str, settings: Sequence[str] = ("*",)) -> list[Column]:
    """The columns of a table in order, with one for each of these settings of a system."""
    kind = TABLES[table]
    hints = typing.get_type_hints(kind)
    found = [] if kind is RunRow else [_POINT]
    for each in fields(kind):
        unit, meaning = each.metadata["unit"], each.metadata["meaning"]
        if each.name == SETTINGS:
            found += [Column(f"{SETTING_PREFIX}{s}", str, unit, meaning) for s in settings]
        else:
            found.append(Column(each.name, _plain(hints[each.name]), unit, meaning))
    return found


def schema_of(table: str, settings: Sequence[str] = ()) -> pa.Schema:
    """The Arrow schema; each field's metadata holds its unit and meaning."""
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return pa.schema(
        [
            pa.field(c.name, kinds[c.type], metadata={"unit": c.unit, "meaning": c.meaning})
            for c in columns_of(table, settings)
        ]
    )


def markdown() -> str:
    """Every table's columns as Markdown."""
    lines = []
    for name, kind in TABLES.items():
        lines += [f"**{name}**: {_first_line(kind)}", "", "| column | type | unit | meaning |"]
        lines += ["|---|---|---|---|"]
        for c in columns_of(name):
            lines.append(f"| `{c.name}` | {_TYPE_NAMES[c.type]} | {c.unit} | {c.meaning} |")
        lines.append("")
    return "\n".join(lines)


def with_columns(text: str) -> str:
    """`text` with the lists of columns and of JSON keys, each between its two marks, made anew."""
    for name, made in {"columns": markdown(), "json": json_keys.markdown()}.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{made}\n{end}{after}"
    return text


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").split("\n")[0].split(":")[0].rstrip(".")


def _plain(hint: Any) -> type:
    """Of `int | None`, int."""
    if isinstance(hint, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    return hint


if __name__ == "__main__":
    README.write_text(with_columns(README.read_text()))
