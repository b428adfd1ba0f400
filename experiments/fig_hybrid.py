"""Tensor parallelism inside groups of devices and a pipeline between them: when is that faster?

A pipeline sends little and has one device at work at a time; tensor parallelism has all at work and
waits for an allreduce twice a layer. Groups of two or four lie between: fewer partners to wait for,
and a group's devices read a layer together. Token latency by link latency, for each size of the
groups; two homes with the internet between them, where only the groups' hops cross it; and the
same measured at a scale this host carries. Run it with `python -m tpi_bench
+experiment=fig_hybrid`; draw it again with `python -m experiments.fig_hybrid FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = ["clock", "topology", "bandwidth_mbps", "weights"]


def table(rows: pd.DataFrame) -> str:
    """A table a panel: s a token by link latency; then what the best groups take of the better of
    both alone.
    """
    text = []
    for key, group in _panels(rows):
        shown = group.pivot_table(
            index="line",
            columns="link_latency_ms",
            values="token_latency_s",
            sort=False,
            aggfunc="median",
        )
        first = group.iloc[0]
        text.append(f"{_title(key)}, {first.model} in {first.weights}: s a token by ms a hop")
        text.append(shown[sorted(shown.columns)].to_string(float_format="{:.3g}".format))
        text += _gains(group)
    return "\n".join(text)


def _gains(group: pd.DataFrame) -> list[str]:
    lines = []
    for latency, own in group.groupby("link_latency_ms"):
        times = own.groupby(["is_grouped", "line"]).token_latency_s.median()
        if set(times.index.get_level_values(0)) != {True, False}:
            continue
        groups, alone = times[True], times[False]
        lines.append(
            f"  {latency:g} ms a hop: {groups.idxmin()} {groups.min():.3g} s, "
            f"{groups.min() / alone.min():.2f} of {alone.idxmin()}"
        )
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a network; where there is one latency alone, bars. Groups add directly here: with
    star they are slower, as the table says, and what streams is level lines.
    """
    shown = rows[~rows.is_grouped | rows.adds_directly]
    shown = shown[(shown.clock == "wall") | (shown.weights != "float32")]
    shown = rows if shown.empty else shown
    panels = list(_panels(shown))
    styles = looks.line_styles(list(dict.fromkeys(shown.line)))
    num_rows = -(-len(panels) // 2)
    figure = figures.new_figure(0.9 + 1.9 * num_rows, num_columns=2)
    grid = figure.subplots(num_rows, min(2, len(panels)), squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (key, group) in zip(grid, panels, strict=False):
        if group.link_latency_ms.nunique() > 1:
            _draw_lines(axes, group, styles)
        else:
            _draw_bars(axes, group, styles)
        first = group.iloc[0]
        shared = " sharing cores" if group.devices_share_cores.eq(True).any() else ""
        model = f"{names.model_name(first.model)} {first.weights}"
        what = f"{first.num_devices:.0f} devices{shared}"
        axes.set_title(f"{_title(key)}: {model}\n{what}", fontsize=7)
    for axes in grid[::2]:
        axes.set_ylabel("token latency (s)" if axes.lines else "")
    handles = figures.handles_of(list(grid))
    figure.legend(*handles, loc="outside lower center", ncol=5, frameon=False)
    return figure


def _draw_lines(axes: Axes, group: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    for label, style in styles.items():
        own = group[group.line == label].groupby("link_latency_ms").token_latency_s
        if len(own):
            axes.plot(own.median(), label=label, **style)
    axes.set_xscale("symlog", linthresh=0.1)
    ticks = sorted(set(group.link_latency_ms))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=6)
    axes.set_xlabel("link latency (ms a hop)")
    axes.set_ylim(bottom=0)


def _draw_bars(axes: Axes, group: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    own = [label for label in styles if (group.line == label).any()]
    for place, label in enumerate(own):
        time = group[group.line == label].token_latency_s.median()
        axes.barh(place, time, color=styles[label]["color"])
        axes.text(time, place, f" {time:.3g}", va="center", fontsize=6)
    axes.set_yticks(range(len(own)), own, fontsize=6)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("token latency (s)")


def _panels(rows: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    return list(rows.groupby(_PANEL, sort=False))


def _title(key: tuple[str, str, float, str]) -> str:
    clock, topology, bandwidth, _ = key
    if clock == "wall":
        return "measured"
    return f"{'two homes' if topology == 'wan' else topology}, {bandwidth:g} Mbit/s"


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Those that succeeded, each with its `line`, whether it `is_grouped`, and `adds_directly`."""
    rows = succeeded(runs)
    cells = rows.to_dict("records")
    labels = [names.system_label(row) for row in cells]
    rows["line"] = [label.removesuffix(" window auto") for label in labels]
    rows["is_grouped"] = rows.system == "hybrid"
    rows["adds_directly"] = [row.get("system_collective") == "direct" for row in cells]
    return rows


DRAWING = Drawing(name="fig_hybrid", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
