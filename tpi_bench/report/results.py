"""What `tpi_bench.run`, `sweep` and `load` give: rows as frozen dataclasses, tables as pandas.

Needs neither torch nor Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tpi_bench.report.columns import TABLES, schema_of
from tpi_bench.report.folder import ResultsFolder, tables_of
from tpi_bench.report.rows import DeviceRow, Record, Row, RunRow, SpanRow, TokenRow
from tpi_bench.report.text import generation_text, point_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Result:
    """A point that was run, or failed: `status` says which, `print(result)` how fast it was.

    `row` has every column of the run as an attribute; `tokens`, `devices` and `spans` are lists of
    rows. `text` is the answer; None where the model has no tokenizer or tokens mean nothing.
    `is_cut` says that it ends because of `workload.num_new_tokens`.
    """

    record: Record = field(repr=False)
    text: str | None = None
    is_cut: bool = False

    @property
    def row(self) -> RunRow:
        return self.record.run

    @property
    def tokens(self) -> list[TokenRow]:
        return self.record.tokens

    @property
    def devices(self) -> list[DeviceRow]:
        return self.record.devices

    @property
    def spans(self) -> list[SpanRow]:
        return self.record.spans

    @property
    def status(self) -> str:
        """`ok`, `oom`, `timeout`, `device_lost` or `error`; then `row.error` has the reason."""
        return self.row.status

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    def table(self, name: str) -> pd.DataFrame:
        """`runs`, `tokens`, `devices` or `spans`, as a sweep writes them."""
        return _frame(tables_of([self.record]), name)

    def __str__(self) -> str:
        if self.status != "ok":
            return point_line(self.row)
        text = generation_text(self.record)
        if not self.is_cut:
            return text
        limit = f"workload.num_new_tokens={len(self.tokens)}"
        return f"{text}\nnote: the answer is cut at {limit}; give more for a longer one"


@dataclass(frozen=True)
class Results:
    """The points of a folder of results.

    `runs`, `tokens`, `devices` and `spans` are tables, and `rows`, `token_rows` and `device_rows`
    the same as dataclasses.
    """

    folder: Path

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a point."""
        return _frame(self._tables, "runs")

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """A row a token of each point."""
        return _frame(self._tables, "tokens")

    @cached_property
    def devices(self) -> pd.DataFrame:
        """A row a device of each point."""
        return _frame(self._tables, "devices")

    @cached_property
    def spans(self) -> pd.DataFrame:
        """What took from when to when on which device; empty without `testbed.trace=true`."""
        return _frame(self._tables, "spans")

    @cached_property
    def links(self) -> pd.DataFrame:
        """What each way between two machines gave before a point; empty on one machine."""
        return _frame(self._tables, "links")

    def table(self, name: str) -> pd.DataFrame:
        """The table of that name, as of a `Result`."""
        return _frame(self._tables, name)

    @cached_property
    def rows(self) -> list[RunRow]:
        """`runs` as dataclasses."""
        return _rows(self._tables, "runs", RunRow)

    @property
    def failed(self) -> list[RunRow]:
        """Points without a result; their `status` and `error` say why."""
        return [row for row in self.rows if row.status != "ok"]

    def token_rows(self, row: RunRow) -> list[TokenRow]:
        """The tokens of a point."""
        return _rows(self._tables, "tokens", TokenRow, row.point)

    def device_rows(self, row: RunRow) -> list[DeviceRow]:
        """The devices of a point."""
        return _rows(self._tables, "devices", DeviceRow, row.point)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        """From the records where they are there, for a sweep that goes on; else as written."""
        import pyarrow.parquet as parquet

        records = ResultsFolder(self.folder).records()
        if records:
            return tables_of(records)
        paths = {name: self.folder / f"{name}.parquet" for name in TABLES}
        written = {name: path for name, path in paths.items() if path.is_file()}
        return {name: _whole(name, parquet.read_table(path)) for name, path in written.items()}


def load(folder: str | Path) -> Results:
    """The results of a sweep, also of one that was stopped or is under way.

    Raises ValueError where the folder holds none.

    >>> runs = load("results/fig_latency").runs
    """
    path = Path(folder).expanduser()
    if not (path / "runs.parquet").is_file() and not any((path / "points").glob("*.json")):
        what = f"{path} holds no results" if path.exists() else f"there is no folder {path}"
        raise ValueError(f"{what}; give the folder of a sweep, with runs.parquet or points/")
    return Results(path)


def _whole(name: str, table: pa.Table) -> pa.Table:
    """With all declared columns; those that are younger than the table are empty."""
    import pyarrow as pa

    for each in schema_of(name):
        if each.name not in table.column_names:
            table = table.append_column(each, pa.nulls(len(table), each.type))
    return table


def _frame(tables: dict[str, pa.Table], name: str) -> pd.DataFrame:
    if name not in TABLES:
        raise ValueError(f"there is no table {name}; choose one of {', '.join(TABLES)}")
    table = tables[name] if name in tables else schema_of(name).empty_table()
    return table.to_pandas()


def _rows(tables: dict[str, pa.Table], name: str, kind: type[R], point: str = "") -> list[R]:
    """Rows of a table, of one point where it is given; empty cells are what was not measured."""
    if name not in tables:
        return []
    cells = tables[name].to_pylist()
    chosen = [row for row in cells if not point or row["point"] == point]
    return [kind.from_cells({k: v for k, v in row.items() if v is not None}) for row in chosen]
