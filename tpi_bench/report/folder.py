"""Results on disk: a JSON record a point, and tables of all (Parquet and CSV) at the end.

A stopped sweep is taken up again by looking at what is there: points that are ok are done, and so
are those that do not fit or took too long, which are answers. A folder with tables and without
records is finished and kept: reference runs are such. Needs no torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.host import cache
from tpi_bench.report.columns import TABLES, schema_of
from tpi_bench.report.paper_tables import paper_tables
from tpi_bench.report.rows import DeviceRow, LinkRow, Record, Row, RunRow, SpanRow, TokenRow

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


ARGUMENTS_FILE = "overrides.json"  # what was typed
ADVICE_FILE = "advice.json"  # of task=advise
_CONFIG_FILES = ("multirun.yaml", "config.yaml")  # Hydra's, and as reference runs call it
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CannotWrite(ValueError):
    """A results folder cannot be written: the message names it and says what to do."""


class ResultsFolder:
    """results/runs/EXPERIMENT/TIME, or any folder that holds the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._points = folder / "points"

    def create(self) -> None:
        """Raises ValueError when the folder cannot be made."""
        with self.writing():
            self._points.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an OSError while the folder is written into CannotWrite."""
        try:
            yield
        except OSError as error:
            is_full = error.errno in _FULL or os.strerror(errno.ENOSPC) in str(error)
            reason = os.strerror(errno.ENOSPC) if is_full else error.strerror or str(error)
            advice = "free some space there" if is_full else "make it writable"
            raise CannotWrite(
                f"cannot write to the results folder {self.folder}: {reason}; {advice}"
                f"{self._how_to_go_on()}"
            ) from error

    def _how_to_go_on(self) -> str:
        """Once it can be written again; a folder without a row is removed with its sweep."""
        if not (self.folder / ARGUMENTS_FILE).is_file():
            return ", or choose another folder with output_dir=DIR or results_dir=DIR"
        if self.is_unused:
            return ", then run the same command again"
        return f", then go on with: python -m tpi_bench {shlex.quote(f'resume={self.folder}')}"

    @property
    def lock_path(self) -> Path:
        """Beside the records, so that a finished folder is without it."""
        return self._points / ".in_use.lock"

    @property
    def is_finished(self) -> bool:
        """Whether it has its tables and no records any more, or what a search has found."""
        has_tables = (self.folder / "runs.parquet").is_file()
        return has_tables and (not self._points.is_dir() or (self.folder / ADVICE_FILE).is_file())

    @property
    def is_sweep(self) -> bool:
        """Whether a sweep has been begun there."""
        return (self.folder / _CONFIG_FILES[0]).is_file()

    @property
    def arguments(self) -> list[str] | None:
        """What was typed when it was made; None where that is not known."""
        path = self.folder / ARGUMENTS_FILE
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def is_unused(self) -> bool:
        """Whether nothing is there, or only what is left where the first point was refused."""
        if not self.folder.exists():
            return True
        if not self.folder.is_dir() or any(self._points.glob("*.json")):
            return False
        left = {ARGUMENTS_FILE, _CONFIG_FILES[0], self._points.name}
        return {path.name for path in self.folder.iterdir()} <= left

    def keep_arguments(self, arguments: Sequence[str]) -> None:
        """For `resume=`."""
        with self.writing():
            cache.write_json(self.folder / ARGUMENTS_FILE, list(arguments))

    @property
    def figure(self) -> str | None:
        """The module of `experiments/` that draws it; None where none does, or nothing says so."""
        import yaml

        for name in _CONFIG_FILES:
            path = self.folder / name
            if path.is_file():
                return (yaml.safe_load(path.read_text()) or {}).get("figure")
        return None

    def save(self, record: Record) -> None:
        """Keep a point's record, in place of an earlier one."""
        written = {
            "run": record.run.cells(),
            "tokens": [vars(row) for row in record.tokens],
            "devices": [vars(row) for row in record.devices],
            "spans": [vars(row) for row in record.spans],
            "links": [vars(row) for row in record.links],
            "config": record.config,
        }
        with self.writing():
            cache.write_json(self._points / f"{record.run.point}.json", written)

    def done(self, point: str, timeout_s: float | None = None) -> Record | None:
        """The record of a point that needs not be run again, with this bound on its time.

        That it does not fit is an answer, and that it took longer than a bound as long as this.
        """
        record = self.load(point)
        if record is None or not record.run.is_answer:
            return None
        bound_s = math.inf if timeout_s is None else timeout_s
        if record.run.status == "timeout" and bound_s > record.run.timeout_s:
            return None
        return record

    def load(self, point: str) -> Record | None:
        path = self._points / f"{point}.json"
        return _read(path) if path.is_file() else None

    def records(self) -> list[Record]:
        """All records, in the order in which they were measured."""
        found = [_read(path) for path in self._points.glob("*.json")]
        return sorted(found, key=lambda record: record.run.started)

    def stored_columns(self) -> list[set[str]]:
        """The columns that each record of a run was written with, else those of the table."""
        import pyarrow.parquet as parquet

        paths = list(self._points.glob("*.json"))
        table = self.folder / "runs.parquet"
        if not paths and table.is_file():
            return [set(parquet.read_schema(table).names)]
        return [set(json.loads(path.read_text())["run"]) for path in paths]

    def write_tables(self) -> None:
        """Gather the records into tables beside them, and one for a text (`paper_tables.py`)."""
        import pyarrow.parquet as parquet

        tables = tables_of(self.records())
        for name, table in tables.items():
            temporary = self.folder / f".{name}.tmp"
            with self.writing():
                try:
                    parquet.write_table(table, temporary)
                    temporary.replace(self.folder / f"{name}.parquet")
                    _whole_numbers(table).to_csv(temporary, index=False)
                    temporary.replace(self.folder / f"{name}.csv")
                finally:
                    temporary.unlink(missing_ok=True)
        with self.writing():
            for name, text in paper_tables(tables["runs"].to_pandas()).items():
                cache.write_text(self.folder / name, text)


def tables_of(records: Sequence[Record]) -> dict[str, pa.Table]:
    """The tables by name; spans and links only where there are any."""
    import pyarrow as pa

    by_system = sorted(records, key=lambda record: str(record.run.system))  # whoever began first
    settings = list(dict.fromkeys(name for r in by_system for name in r.run.system_settings))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for record in records:
        rows["runs"].append(record.run.cells())
        parts: dict[str, Sequence[Row]] = {
            "tokens": record.tokens,
            "devices": record.devices,
            "spans": record.spans,
            "links": record.links,
        }
        for name, part in parts.items():
            rows[name] += [{"point": record.run.point} | vars(row) for row in part]
    for name in ("spans", "links"):
        if not rows[name]:
            del rows[name]
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


def read_spans(folder: Path) -> pd.DataFrame:
    """What took from when to when. Raises ValueError where none were kept."""
    import pandas as pd

    path = folder / "spans.parquet"
    if not path.is_file():
        raise ValueError(f"{folder} holds no spans; they are kept with testbed.trace=true")
    return pd.read_parquet(path)


def _read(path: Path) -> Record:
    found = json.loads(path.read_text())
    return Record(
        run=RunRow.from_cells(found["run"]),
        tokens=[TokenRow.from_cells(row) for row in found["tokens"]],
        devices=[DeviceRow.from_cells(row) for row in found["devices"]],
        spans=[SpanRow.from_cells(row) for row in found["spans"]],
        links=[LinkRow.from_cells(row) for row in found.get("links", ())],
        config=found["config"],
    )
