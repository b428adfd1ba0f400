"""What every experiment's table and figure say of rows that cannot be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.helpers.command_line import ROOT
from tpi_bench.report import figures
from tpi_bench.report.drawing import Drawing


def drawing(title: str | None, drawn: list[Figure] | None = None) -> Drawing:
    """Of all rows, an empty figure; those that it drew are in `drawn`."""

    def draw(rows: pd.DataFrame) -> Figure:
        figure = figures.new_figure()
        if title:
            figure.suptitle(title)
        if drawn is not None:
            drawn.append(figure)
        return figure

    return Drawing(name="some", rows=lambda runs: runs, table=lambda rows: "a table", draw=draw)


def test_points_that_beat_their_limit_are_named(tmp_path: Path) -> None:
    drawn: list[Figure] = []
    rows = pd.DataFrame({"beats_limit": [True, False, None, True], "status": "ok"})
    words = "2 of 4 points are faster than their limit, which was probed at a slower moment"
    assert words in drawing(None).text(rows)
    for title in (None, "What it shows"):
        assert len(drawing(title, drawn).save(rows, tmp_path)) == 2
        assert words in drawn[-1].get_suptitle()
        assert (title or "") in drawn[-1].get_suptitle()


def test_a_limit_that_virtual_time_beats_is_too_high() -> None:
    rows = pd.DataFrame({"beats_limit": [True, False], "status": "ok", "clock": "virtual"})
    words = "1 of 2 points are faster than their limit, which is too high for them"
    assert words in drawing(None).text(rows)


def test_other_rows_are_left_as_they_are(tmp_path: Path) -> None:
    drawn: list[Figure] = []
    for rows in (pd.DataFrame({"status": ["ok"]}), pd.DataFrame({"beats_limit": [False, None]})):
        assert drawing(None).text(rows) == "a table"
        drawing("What it shows", drawn).save(rows, tmp_path)
        assert drawn[-1].get_suptitle() == "What it shows"


@pytest.mark.parametrize("config", ["config.yaml", "multirun.yaml"])
def test_rows_of_another_experiment_are_refused(config: str, tmp_path: Path) -> None:
    """A wrong figure would stay in the folder."""
    reference = ROOT / "results" / "fig_scaling"
    shutil.copy(reference / "runs.parquet", tmp_path)
    shutil.copy(reference / "config.yaml", tmp_path / config)
    kept = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "experiments.fig_precision", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr == (
        f"error: {tmp_path} holds the rows of experiments.fig_scaling, not of "
        "experiments.fig_precision; draw it with: python -m experiments.fig_scaling "
        f"{tmp_path}\n"
    )
    assert sorted(tmp_path.iterdir()) == kept


def test_a_reader_that_leaves_is_no_failure(tmp_path: Path) -> None:
    """`python -m experiments.NAME FOLDER | head -1`: no traceback, and the figure is there."""
    shutil.copytree(ROOT / "results" / "tab_overview", tmp_path / "tab_overview")
    (tmp_path / "tab_overview" / "tab_overview.png").unlink()
    code = (
        "import os, runpy, sys\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "sys.argv = ['experiments.tab_overview', sys.argv[1]]\n"
        "runpy.run_module('experiments.tab_overview', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tab_overview")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "tab_overview" / "tab_overview.png").is_file()
