"""Results on disk: a JSON record a point, and tables of all (Parquet and CSV) at the end.

A point is done when its record says `status` ok, so a stopped sweep is taken up again by looking at
what is there. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.host import cache
from tpi_bench.report.columns import TABLES, schema_of
from tpi_bench.report.rows import DeviceRow, Record, Row, RunRow, SpanRow, TokenRow

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class ResultsFolder:
    """results/runs/EXPERIMENT/TIME, or any folder that holds the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._points = folder / "points"

    def create(self) -> None:
        """Raises ValueError when the folder cannot be made."""
        try:
            self._points.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cannot create the results folder {self.folder}: {error.strerror}"
            ) from error

    def save(self, record: Record) -> None:
        """Keep a point's record, in place of an earlier one."""
        written = {
            "run": record.run.cells(),
            "tokens": [vars(row) for row in record.tokens],
            "devices": [vars(row) for row in record.devices],
            "spans": [vars(row) for row in record.spans],
            "config": record.config,
        }
        cache.write_json(self._points / f"{record.run.point}.json", written)

    def is_done(self, point: str) -> bool:
        record = self.load(point)
        return record is not None and record.run.status == "ok"

    def load(self, point: str) -> Record | None:
        path = self._points / f"{point}.json"
        return _read(path) if path.is_file() else None

    def records(self) -> list[Record]:
        """All records, in the order in which they were measured."""
        found = [_read(path) for path in self._points.glob("*.json")]
        return sorted(found, key=lambda record: record.run.started)

    def write_tables(self) -> None:
        """Gather the records into tables beside them."""
        import pyarrow.parquet as parquet

        for name, table in tables_of(self.records()).items():
            temporary = self.folder / f".{name}.tmp"
            parquet.write_table(table, temporary)
            temporary.replace(self.folder / f"{name}.parquet")
            _whole_numbers(table).to_csv(temporary, index=False)
            temporary.replace(self.folder / f"{name}.csv")


def tables_of(records: Sequence[Record]) -> dict[str, pa.Table]:
    """The tables by name; spans only where there are any."""
    import pyarrow as pa

    settings = list(dict.fromkeys(name for r in records for name in r.run.system_settings))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for record in records:
        rows["runs"].append(record.run.cells())
        parts: dict[str, Sequence[Row]] = {
            "tokens": record.tokens,
            "devices": record.devices,
            "spans": record.spans,
        }
        for name, part in parts.items():
            rows[name] += [{"point": record.run.point} | vars(row) for row in part]
    if not rows["spans"]:
        del rows["spans"]
    tables = {}
    for name, cells in rows.items():
        schema = schema_of(name, settings)
        arrays = [
            pa.array([row.get(each.name) for row in cells], each.type, from_pandas=True)
            for each in schema
        ]
        tables[name] = pa.Table.from_arrays(arrays, schema=schema)
    return tables


def _whole_numbers(table: pa.Table) -> pd.DataFrame:
    """As a frame in which a whole number stays one beside empty cells."""
    import pandas as pd
    import pyarrow as pa

    kinds = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=kinds.get)


def read_runs(folder: Path) -> pd.DataFrame:
    """The run table of a results folder. Raises ValueError when there is none."""
    import pandas as pd

    path = folder / "runs.parquet"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no runs.parquet; give a results folder of a finished experiment"
        )
    return pd.read_parquet(path)


def _read(path: Path) -> Record:
    found = json.loads(path.read_text())
    return Record(
        run=RunRow.from_cells(found["run"]),
        tokens=[TokenRow.from_cells(row) for row in found["tokens"]],
        devices=[DeviceRow.from_cells(row) for row in found["devices"]],
        spans=[SpanRow.from_cells(row) for row in found["spans"]],
        config=found["config"],
    )
