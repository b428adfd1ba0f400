"""Are tensor and pipeline parallelism together faster than either?

Groups of devices divide each layer, and a pipeline goes from group to group: a token waits for
allreduces of few devices, and each layer's weights are read by as many. Beside it one group of all
devices (TPI with a direct allreduce) and groups of one (a pipeline), by link latency, in the same
memory. Run it with `python -m tpi_bench +experiment=fig_hybrid`; draw it again with `python -m
experiments.fig_hybrid FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench.report import figures
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TIMES = {"token_latency_s": "token latency (s)", "ttft_s": "TTFT (s)"}


def table(rows: pd.DataFrame) -> str:
    """Seconds a token and of the TTFT: a line a link latency, a column a way."""
    text = []
    for weights, own in rows.groupby("weights", sort=False):
        for column, words in _TIMES.items():
            shown = own.pivot_table(index="link_latency_ms", columns="line", values=column)
            shown = shown[list(dict.fromkeys(own.line))]
            shown["fastest"] = shown.idxmin(axis=1)
            text += [f"{weights} weights, {words}", shown.to_string(float_format="{:.3g}".format)]
    return "\n".join(text)


def draw(rows: pd.DataFrame) -> Figure:
    """Token latency against link latency, a panel a precision."""
    kinds = list(dict.fromkeys(rows.weights))
    lines = list(dict.fromkeys(rows.line))
    colours = figures.palette(lines)
    figure = figures.new_figure(2.4, num_columns=2)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for weights, axes in zip(kinds, panels, strict=True):
        for line, marker in figures.with_markers(lines):
            own = rows[(rows.weights == weights) & (rows.line == line)]
            own = own.sort_values("link_latency_ms")
            style = {"marker": marker, "color": colours[line], "label": line}
            axes.plot(own.link_latency_ms, own.token_latency_s, **style)
        figures.log_milliseconds(axes)
        axes.set_title(f"{weights} weights", fontsize=8)
        axes.set_xlabel("link latency (ms a hop)")
    panels[0].set_ylabel(_TIMES["token_latency_s"])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncol=4)
    first = rows.iloc[0]
    words = f"{first.model}, {first.num_devices:.0f} devices, {first.bandwidth_mbps:g} Mbit/s"
    figure.suptitle(f"{words}; virtual time, modelled cost", fontsize=7.5)
    return figure


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """With the name of their `line`: how many devices a group has."""
    rows = succeeded(runs)
    rows["line"] = [_line(row) for row in rows.to_dict("records")]
    return rows


def _line(row: dict[str, object]) -> str:
    if row["system"] == "hybrid":
        return f"groups of {row['system_group_size']}"
    return "one group (TPI direct)" if row["system"] == "tpi" else "pipeline"


DRAWING = Drawing(name="fig_hybrid", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
