"""Results on disk: a JSON record a point, and three tables (Parquet and CSV) at the end.

A record is `{"run": {...}, "tokens": [...], "devices": [...]}`. A point is done when its record
says `status` ok, so a stopped sweep is taken up again by looking at what is there. Needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench import cache

if TYPE_CHECKING:
    import pandas as pd


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

    def save(self, key: str, record: dict[str, Any]) -> None:
        cache.write_json(self._points / f"{key}.json", record)

    def is_done(self, key: str) -> bool:
        record = self.load(key)
        return record is not None and record["run"]["status"] == "ok"

    def load(self, key: str) -> dict[str, Any] | None:
        path = self._points / f"{key}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def records(self) -> list[dict[str, Any]]:
        """All records, in the order in which they were measured."""
        found = [json.loads(path.read_text()) for path in self._points.glob("*.json")]
        return sorted(found, key=lambda record: record["run"]["started"])

    def write_tables(self) -> dict[str, pd.DataFrame]:
        """Gather the records into runs, tokens and devices tables beside them."""
        import pandas as pd

        records = self.records()
        tables = {"runs": pd.DataFrame([record["run"] for record in records])}
        for name in ("tokens", "devices", "spans"):  # spans only with testbed.trace=true
            rows = [
                {"point": record["run"]["point"]} | row
                for record in records
                for row in record.get(name, [])
            ]
            if rows or name != "spans":
                tables[name] = pd.DataFrame(rows)
        for name, table in tables.items():
            for ending, write in (("parquet", table.to_parquet), ("csv", table.to_csv)):
                temporary = self.folder / f".{name}.tmp"
                write(temporary, index=False)
                temporary.replace(self.folder / f"{name}.{ending}")
        return tables


def is_result(runs: pd.DataFrame) -> pd.Series:
    """Which rows answer what was asked: also that it does not fit, or takes too long.

    A timeout that `timeout_s` did not bring about is a device that hangs, and no answer.
    """
    answers = runs.status.isin(["ok", "oom"])
    if {"timeout_s", "wall_s"} <= set(runs.columns):
        answers |= (runs.status == "timeout") & (runs.wall_s >= runs.timeout_s)
    return answers


def differs_from_oracle(runs: pd.DataFrame) -> pd.Series:
    """Which rows should have the oracle's tokens and have others: fp32, in values and weights.

    Narrower numbers round differently, and are compared but not judged.
    """
    if "tokens_equal" not in runs:
        return runs.status.isna()
    weights = runs.get("system_weights", runs.status).astype(str)
    is_exact = (runs.dtype == "float32") & ~weights.str.startswith("Q")
    return is_exact & (runs.status == "ok") & runs.tokens_equal.eq(False)


def read_runs(folder: Path) -> pd.DataFrame:
    """The run table of a results folder. Raises ValueError when there is none."""
    import pandas as pd

    path = folder / "runs.parquet"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no runs.parquet; give a results folder of a finished experiment"
        )
    return pd.read_parquet(path)
