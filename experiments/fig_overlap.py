"""When does a sliding window hide the disk? Disk rate, link latency and compute speed swept.

The doubt of TPI-LLM's critics: a token reads every weight once, and if memory gives them to the
processor ten times faster than the disk does, the disk can only hide where something else takes
long, as links do. Each field is the token latency of one way of getting weights over that of the
same devices with all of them in memory; the line is Proposition 3's condition over a whole token,
that what streams takes no longer than computing and links do. Right of it a window should cost
nothing; left of it the disk sets the pace. Run it with `python -m tpi_bench
+experiment=fig_overlap`; draw it again with `python -m experiments.fig_overlap FOLDER`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tpi_bench.report import figures, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HIDDEN = 1.05  # of the time in memory: the disk is hidden
_FIELDS = ["link_latency_ms", "memory_bps"]


def table(rows: pd.DataFrame) -> str:
    """A line a speed and latency: the disk it takes to hide all, and what each way costs below."""
    import pandas as pd

    return pd.DataFrame(list(_lines(rows))).to_string(index=False)


def _lines(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    streamed = rows[rows.is_streamed]
    lines = list(dict.fromkeys(streamed.line))
    first = lines[0]
    for (latency, memory), own in streamed.groupby(_FIELDS):
        window = own[own.line == first].sort_values("disk_bps")
        hidden = window[window.slower <= _HIDDEN]
        in_memory = window.in_memory_s.iloc[0]
        rates = sorted(own.disk_bps.unique())
        bps = rates[len(rates) // 2]
        yield {
            "memory GB/s": f"{memory / 1e9:g}",
            "ms a hop": f"{latency:g}",
            "in memory s": f"{in_memory:.3g}",
            "disk to hide, GB/s": f"{window.needed_bps.iloc[0] / 1e9:.3g}",
            "hidden from, GB/s": f"{hidden.disk_bps.min() / 1e9:g}"
            if len(hidden)
            else "none swept",
            **{f"{line} at {bps / 1e9:g}": _slower(own, line, bps) for line in lines},
        }


def _slower(own: pd.DataFrame, line: str, disk_bps: float) -> str:
    found = own[(own.line == line) & (own.disk_bps == disk_bps)].slower
    return f"{found.iloc[0]:.2f}" if len(found) else "-"


def draw(rows: pd.DataFrame) -> Figure:
    """A field a way of getting weights and a compute speed; colour and number: times in memory."""
    streamed = rows[rows.is_streamed]
    lines = list(dict.fromkeys(streamed.line))
    speeds = sorted(streamed.memory_bps.unique(), reverse=True)
    figure = figures.new_figure(2.0 * len(speeds) + 0.5, num_columns=2)
    panels = figure.subplots(len(speeds), len(lines), squeeze=False, sharex=True, sharey=True)
    for speed, row in zip(speeds, panels, strict=True):
        for line, axes in zip(lines, row, strict=True):
            own = streamed[(streamed.line == line) & (streamed.memory_bps == speed)]
            _draw_field(axes, own)
            if speed == speeds[0]:
                axes.set_title(line, fontsize=8)
        row[0].set_ylabel(f"memory {speed / 1e9:g} GB/s\nlink latency (ms a hop)")
    for axes in panels[-1]:
        axes.set_xlabel("disk (GB/s)")
    bar = figure.colorbar(
        panels[0][0].images[0], ax=panels, shrink=0.8, label="token latency / all in memory"
    )
    ticks = [1, 2, 5, 10, 20, 50]
    bar.set_ticks([math.log(tick) for tick in ticks], labels=[str(tick) for tick in ticks])
    first = rows.iloc[0]
    words = (
        f"{names.model_name(first.model)} in {names.precision_name(first.weights)} on "
        f"{first.num_devices:.0f} devices, {first.topology}; "
        "virtual time, modelled cost. Line: the disk takes as long as computing and links"
    )
    figure.suptitle(words, fontsize=7.5)
    return figure


def _draw_field(axes: Axes, own: pd.DataFrame) -> None:
    field = own.pivot_table(index="link_latency_ms", columns="disk_bps", values="slower")
    axes.imshow(
        np.log(field), origin="lower", aspect="auto", cmap="cividis_r", vmin=0, vmax=math.log(50)
    )
    for y, latency in enumerate(field.index):
        for x, disk in enumerate(field.columns):
            value = field.loc[latency, disk]
            colour = "w" if value > 7 else "k"
            text = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(
        range(len(field.columns)), [f"{bps / 1e9:g}" for bps in field.columns], fontsize=6
    )
    axes.set_yticks(range(len(field.index)), [f"{latency:g}" for latency in field.index])
    axes.grid(False)
    needed = own.groupby("link_latency_ms").needed_bps.first()
    rates = np.log([float(bps) for bps in field.columns])
    if len(rates) > 1:
        places = np.interp(
            np.log(needed), rates, range(len(rates)), left=-0.5, right=len(rates) - 0.5
        )
        ends = [edge for y in range(len(places)) for edge in (y - 0.5, y + 0.5)]
        axes.plot(np.repeat(places, 2), ends, color="r", linewidth=1.2)


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """With what the same devices take in memory, and the disk rate that would hide what streams."""
    rows = succeeded(runs)
    rows["line"] = [names.system_label(row) for row in rows.to_dict("records")]
    rows["is_streamed"] = rows.limit_disk_s > 0
    if rows.empty or rows.is_streamed.all() or not rows.is_streamed.any():
        return rows[:0]
    held = rows[~rows.is_streamed].groupby(_FIELDS).token_latency_s.first().rename("in_memory_s")
    rows = rows.join(held, on=_FIELDS)
    rows["slower"] = rows.token_latency_s / rows.in_memory_s
    rows["needed_bps"] = _read_bytes(rows) / rows.in_memory_s
    return rows


def _read_bytes(rows: pd.DataFrame) -> pd.Series:
    """What a token reads, as planned. Of mapped files, which nobody plans, what it must at least.

    The limit is less than what is planned: it leaves out what the first of a few tokens found read.
    """
    return rows.streamed_bytes.fillna(rows.limit_disk_s * rows.disk_bps)


DRAWING = Drawing(
    name="fig_overlap",
    rows=_rows,
    table=table,
    draw=draw,
    nothing="no point succeeded, or nothing streams, or nothing is in memory to hold it against",
)

if __name__ == "__main__":
    DRAWING.again()
