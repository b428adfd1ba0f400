"""Rows that were measured before there was a column: what is said where somebody asks for it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import run, run_here
from tests.report.test_drawing import drawing
from tests.report.test_rows import RUN
from tpi_bench import load
from tpi_bench.app import tasks
from tpi_bench.report.drawing import Drawing
from tpi_bench.report.folder import ResultsFolder
from tpi_bench.report.older import OlderRows, columns_lacking, told_of_older_rows
from tpi_bench.report.rows import Record


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Tables without two columns that there are today."""
    folder = ResultsFolder(tmp_path / "finished")
    folder.create()
    folder.save(Record(run=RUN))
    folder.write_tables()
    shutil.rmtree(folder.folder / "points")
    table = folder.folder / "runs.parquet"
    pd.read_parquet(table).drop(columns=["limit_spread", "num_events"]).to_parquet(table)
    return folder.folder


def test_what_is_drawn_again_says_that_its_rows_are_older(finished: Path) -> None:
    assert columns_lacking(finished) == ["num_events", "limit_spread"]
    shown = drawing(None)
    for ask in (lambda rows: rows[["num_events"]], lambda rows: rows.num_events):
        older = Drawing(name="some", rows=ask, table=shown.table, draw=shown.draw)
        done = run_here(older.again, [str(finished)])
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(
            f"error: rows of {finished} are older than the column num_events, which they do not "
        )
        assert line.endswith(
            "measure them anew in another folder, or take the version that made them"
        )


def test_other_mistakes_are_not_laid_on_them(finished: Path) -> None:
    with pytest.raises(KeyError, match="nothing_declared"), told_of_older_rows(finished):
        raise KeyError("nothing_declared")
    words = r"columns num_events, limit_spread, .*unsupported operand"
    with pytest.raises(OlderRows, match=words), told_of_older_rows(finished):
        _ = None + 1  # type: ignore[operator]
    table = finished / "runs.parquet"
    pd.read_parquet(table).assign(num_events=1, limit_spread=0.0).to_parquet(table)
    assert columns_lacking(finished) == []
    with pytest.raises(TypeError), told_of_older_rows(finished):
        _ = None + 1  # type: ignore[operator]


def test_who_loads_them_finds_an_empty_column(finished: Path) -> None:
    found = load(finished)
    assert found.runs.limit_spread.isna().all()
    assert math.isnan(found.rows[0].limit_spread)


def test_a_point_that_is_shown_again(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no defect that a row from before cannot be shown as today's are."""
    folder = tmp_path / "out"
    typed = ["task=measure", "testbed=virtual", "model=debug", "workload.prompt_tokens=3"]
    assert run(*typed, f"output_dir={folder}", cache_dir=cache_dir).returncode == 0
    (point,) = (folder / "points").glob("*.json")
    stored = json.loads(point.read_text())
    del stored["run"]["num_events"]
    point.write_text(json.dumps(stored))

    def line(run: object) -> str:
        return f"{run.num_events + 1}"  # type: ignore[attr-defined]

    monkeypatch.setattr(tasks, "point_line", line)
    done = run(f"resume={folder}", cache_dir=cache_dir)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: rows of {folder} are older than the column num_events,")
    assert "a defect" not in done.stderr
