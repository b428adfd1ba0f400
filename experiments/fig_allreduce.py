"""Allreduce time against link latency and devices: collectives beside their closed forms.

Claims it holds against numbers: link latency, not bandwidth, is the bottleneck of allreduce (claim
3 of TPI-LLM), star beats ring and tree (claim 4, its figure 3), and the doubt whether star is still
much better at the round trips of a normal LAN. Run it with `python -m tpi_bench
+experiment=fig_allreduce`; draw it again with `python -m experiments.fig_allreduce FOLDER`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tpi_bench.report import figures, looks
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NETWORKS = {"paper": "paper's network", "switch": "LAN with one switch"}


def table(rows: pd.DataFrame) -> str:
    """One line a network, latency and number of devices; a column a collective, in ms."""
    index = ["topology", "bandwidth_mbps", "link_latency_ms", "num_devices"]
    times, closed = (
        rows.pivot_table(index=index, columns="system_collective", values=values, sort=False)
        for values in ("time_ms", "closed_ms")
    )
    times, closed = (found.reindex(columns=_collectives(rows)) for found in (times, closed))
    shown = times.map(_rounded) + " (" + closed.map(_rounded) + ")"
    worst = ((rows.time_ms - rows.closed_ms) / rows.closed_ms).max()
    return (
        f"{shown.sort_index().reset_index().to_string(index=False)}\n"
        "ms an allreduce, in brackets the closed form, which leaves out the devices' own time; "
        f"largest excess {worst:.0%}"
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Against latency on each network at the middle number of devices, and against devices."""
    figure = figures.new_figure(2.7, num_columns=2)
    names = _collectives(rows)
    networks = list(dict.fromkeys(rows.topology))
    panels = figure.subplots(1, len(networks) + 1)
    counts = sorted(rows.num_devices.unique())
    middle = counts[min(len(counts) - 1, 2)]
    for axes, network in zip(panels, networks, strict=False):
        own = rows[(rows.topology == network) & (rows.num_devices == middle)]
        _lines(axes, own, "link_latency_ms", names)
        axes.set_xlabel("link latency (ms a hop)")
        mbps = f"{own.bandwidth_mbps.iloc[0]:g} Mbit/s"
        axes.set_title(f"{_NETWORKS.get(network, network)},\n{mbps}, {middle} devices", fontsize=7)
    first = rows[rows.topology == networks[0]]
    latencies = sorted(first.link_latency_ms.unique())
    latency = 1.0 if 1.0 in latencies else latencies[-1]
    _lines(panels[-1], first[first.link_latency_ms == latency], "num_devices", names)
    panels[-1].set_xlabel("devices")
    panels[-1].set_title(
        f"{_NETWORKS.get(networks[0], networks[0])},\n{latency:g} ms a hop", fontsize=7
    )
    panels[0].set_ylabel("allreduce (ms)")
    figures.name_ends(panels[-1])
    closed = panels[0].plot([], [], **looks.LIMIT, label="closed form")
    figure.legend(handles=closed, loc="outside lower center", frameon=False)
    return figure


def _rounded(milliseconds: float) -> str:
    return "?" if math.isnan(milliseconds) else str(round(milliseconds, 3))


def _collectives(rows: pd.DataFrame) -> list[str]:
    """Whatever was run, in that order."""
    return list(dict.fromkeys(rows.system_collective))


def _lines(axes: Axes, rows: pd.DataFrame, along: str, names: list[str]) -> None:
    for name in names:
        line = rows[rows.system_collective == name].sort_values(along)
        if line.empty:
            continue
        look = looks.look_of(name)
        axes.plot(line[along], line.time_ms, look.marker, color=look.colour, label=name)
        axes.plot(line[along], line.closed_ms, **{**looks.LIMIT, "color": look.colour})
    figures.log_values(axes, rows[along])
    figures.log_milliseconds(axes)


def _good(runs: pd.DataFrame) -> pd.DataFrame:
    """Points that succeeded, with their time and the closed form, in ms.

    The closed form is the limit that the system's own links set (`baselines/allreduce.py`).
    """
    good = succeeded(runs)
    good = good[(good.system == "allreduce") & (good.num_devices > 1)]
    return good.assign(time_ms=good.token_latency_s * 1e3, closed_ms=good.limit_network_s * 1e3)


DRAWING = Drawing(
    name="fig_allreduce",
    rows=_good,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
