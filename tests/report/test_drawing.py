"""What every experiment's table and figure say of rows that cannot be."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

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
    words = "2 of 4 points are faster than their limit, which was probed on a busier host"
    assert words in drawing(None).text(rows)
    for title in (None, "What it shows"):
        assert len(drawing(title, drawn).save(rows, tmp_path)) == 2
        assert words in drawn[-1].get_suptitle()
        assert (title or "") in drawn[-1].get_suptitle()


def test_other_rows_are_left_as_they_are(tmp_path: Path) -> None:
    drawn: list[Figure] = []
    for rows in (pd.DataFrame({"status": ["ok"]}), pd.DataFrame({"beats_limit": [False, None]})):
        assert drawing(None).text(rows) == "a table"
        drawing("What it shows", drawn).save(rows, tmp_path)
        assert drawn[-1].get_suptitle() == "What it shows"
