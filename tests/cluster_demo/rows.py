"""What was printed, kept as rows: a table of its own among the results."""

from __future__ import annotations

import argparse
import csv
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpi_bench.host.machine import provenance


class Rows:
    """A CSV file that is written row by row, each with commit and host; none without a path."""

    def __init__(self, path: Path | None) -> None:
        """Raises SystemExit where there is such a file already."""
        if path is not None and path.exists():
            raise SystemExit(f"--rows={path} is there already; name another file, or remove it")
        self._path = path

    def add(self, **cells: Any) -> None:
        if self._path is None:
            return
        ended = datetime.datetime.now(datetime.UTC).isoformat()
        row: Mapping[str, Any] = {**cells, "ended": ended, **provenance()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=Path, help="a CSV file for all that is measured")
