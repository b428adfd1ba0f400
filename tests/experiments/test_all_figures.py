"""Every committed figure, drawn again from its rows, as a reader has to be able to read it."""

from __future__ import annotations

import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from experiments import tab_limits
from tests.helpers.command_line import ROOT
from tests.helpers.figures import cut_words, other_looks, small_words, unnamed_hidden_lines
from tpi_bench.report.drawing import Drawing
from tpi_bench.report.folder import ResultsFolder

RESULTS = ROOT / "results"
ADVISED = ("home_70b", "prima_8b")  # two of sixteen alike
FOLDERS = sorted(path.parent.relative_to(RESULTS) for path in RESULTS.rglob("runs.parquet"))
FOLDERS = [each for each in FOLDERS if len(each.parts) == 1 or each.name in ADVISED]
DRAWN = [folder for folder in FOLDERS if ResultsFolder(RESULTS / folder).figure is not None]


def faults(drawing: Drawing, folder: Path) -> dict[str, list[str]]:
    rows = drawing.rows(drawing.stored(folder))
    assert len(rows), f"{folder} shows nothing"
    return faults_of(drawing, rows)


def faults_of(drawing: Drawing, rows) -> dict[str, list[str]]:  # type: ignore[no-untyped-def]
    figure = drawing.figure(rows)
    try:
        found = {
            "under 6 points": small_words(figure),
            "cut off": cut_words(figure),
            "other looks": other_looks(figure),
            "hidden": unnamed_hidden_lines(figure),
        }
    finally:
        plt.close(figure)
    return {fault: words for fault, words in found.items() if words}


@pytest.mark.parametrize("folder", DRAWN, ids=str)
def test_a_figure_can_be_read(folder: Path) -> None:
    figure = ResultsFolder(RESULTS / folder).figure
    assert figure is not None
    assert faults(importlib.import_module(figure).DRAWING, RESULTS / folder) == {}


def test_the_table_of_limits_can_be_read() -> None:
    rows = tab_limits.DRAWING.rows(tab_limits.stored(RESULTS))
    assert faults_of(tab_limits.DRAWING, rows) == {}


def test_the_table_of_limits_is_of_the_committed_rows() -> None:
    """Else make it anew: `python -m experiments.tab_limits results`."""
    shown = (RESULTS / "tab_limits" / "tab_limits.txt").read_text()
    assert shown == f"{tab_limits.DRAWING.text(tab_limits.stored(RESULTS))}\n"
