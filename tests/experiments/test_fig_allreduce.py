"""The collectives in the figure are those of its rows, whatever they are called."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from experiments.fig_allreduce import DRAWING
from tpi_bench.report.folder import read_runs

STORED = Path(__file__).resolve().parents[2] / "results" / "fig_allreduce"


def with_another(closed_s: float) -> pd.DataFrame:
    """The reference run, and a collective nobody has heard of, first and twice as fast."""
    runs = read_runs(STORED)
    another = runs[runs.system_collective == "star"].assign(system_collective="butterfly")
    another = another.assign(token_latency_s=another.token_latency_s / 2, limit_network_s=closed_s)
    return pd.concat([another, runs], ignore_index=True)


def test_a_new_collective_has_its_column_and_line() -> None:
    rows = DRAWING.rows(with_another(0.001))
    header, first = DRAWING.table(rows).split("\n")[:2]
    assert header.split()[4:] == ["butterfly", "star", "tree", "ring", "direct"]
    shown = float(first.split()[4])
    assert shown == round(rows.time_ms.iloc[0], 3)
    figure = DRAWING.draw(rows)
    figure.draw_without_rendering()
    assert {text.get_text() for text in figure.axes[-1].texts} == set(header.split()[4:])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["closed form"]


def test_without_a_closed_form_it_is_still_there() -> None:
    text = DRAWING.table(DRAWING.rows(with_another(math.nan)))
    assert text.split("\n")[0].split()[4] == "butterfly"
    assert text.split("\n")[1].split()[4:6] == [str(round(2.637 / 2, 3)), "(?)"]
