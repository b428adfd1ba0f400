"""What `task=advise` found: the best ways of running a model on somebody's devices, and where a
token's time goes.

Run it with `python -m tpi_bench task=advise`; draw it again with `python -m experiments.fig_advise
FOLDER`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpi_bench.report import figures, looks, names
from tpi_bench.report.advice import Advice
from tpi_bench.report.advice_text import way_name
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_LIMITS = {
    "limit_memory_s": "reading weights from memory",
    "limit_network_s": "links",
    "limit_disk_s": "reading weights from disk",
}

_PARTS = {"limit_memory_s": "compute", "limit_network_s": "links", "limit_disk_s": "loads"}


def table(rows: pd.DataFrame) -> str:
    """A line for each of the best: its time beside its limits."""
    times = {"token_latency_s": "ms a token", "ttft_s": "TTFT ms"}
    times |= {name: name.removesuffix("_s").replace("_", " ") for name in _LIMITS}
    shown = rows.assign(**{words: rows[name] * 1e3 for name, words in times.items()})
    columns = ["way", "team", "weights", *times.values()]
    return shown[columns].round(1).to_string(index=False)


def draw(rows: pd.DataFrame) -> Figure:
    """A bar a way, the fastest on top; beside it what its parts take at least, one by one."""
    figure = figures.new_figure(0.9 + 0.42 * len(rows), num_columns=2)
    axes = figure.subplots()
    colours = {name: looks.TIMES[part] for name, part in _PARTS.items()}
    places = range(len(rows))
    axes.barh(places, rows.token_latency_s, height=0.75, color="0.85", label="a token")
    for number, (name, words) in enumerate(_LIMITS.items()):
        heights = [place + 0.22 * (number - 1) for place in places]
        axes.barh(heights, rows[name], height=0.18, color=colours[name], label=words)
    labels = [
        f"{row['place']:.0f}  {row['way']}, {row['weights']}\n{row['team']}"
        for row in rows.to_dict("records")
    ]
    axes.set_yticks(places, labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("seconds a token, and what of it at least")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False
    )
    first = rows.iloc[0]
    axes.set_title(
        f"{names.model_name(first.model)}, {first.topology} network; virtual time", fontsize=7.5
    )
    return figure


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of the table of the best, in its order, each with its name as `way`."""
    best = succeeded(runs[runs.place.notna()]).sort_values("place")
    return best.assign(way=[way_name(row) for row in best.to_dict("records")])


@dataclass(frozen=True, kw_only=True)
class AdviceDrawing(Drawing):
    """Shows what `advice.json` beside the rows calls the best."""

    def stored(self, folder: Path) -> pd.DataFrame:
        """The run table with the `place` among the best, from 1 on, and the `team` that works; NaN
        of all others.
        """
        runs, advice = super().stored(folder), Advice.load(folder)
        places = {line.point: number for number, line in enumerate(advice.best, start=1)}
        teams = {line.point: advice.team_text(line) for line in advice.best}
        return runs.assign(place=runs.point.map(places), team=runs.point.map(teams))


DRAWING = AdviceDrawing(
    name="fig_advise",
    rows=_rows,
    table=table,
    draw=draw,
    nothing="nothing fits",
)

if __name__ == "__main__":
    DRAWING.again()
