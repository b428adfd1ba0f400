"""Token latency against link latency: TPI with three collectives, its window, and baselines.

Doubts it answers: is link latency the bottleneck of allreduce (claim 3 of the paper), does star
beat ring (claim 4), does tensor parallelism beat a pipeline for one request (claim 5), and what
does a one-step allreduce change. Run it with `python -m tpi_bench +experiment=fig_latency`; draw
it again from stored rows with `python -m experiments.fig_latency FOLDER`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME_HEIGHT = 0.065  # of a panel


def table(rows: pd.DataFrame) -> str:
    """Medians over the repeats with the range, one line a system and link latency."""
    groups = rows.groupby(["panel", "name", "latency_label"], sort=False)
    medians = groups.agg(
        ttft=("ttft_s", "median"),
        token=("token_latency_s", "median"),
        low=("token_latency_s", "min"),
        high=("token_latency_s", "max"),
        limit=("limit_token_s", "median"),
        round_trip=("link_round_trip_s", "median"),
        memory=("memory_bytes", "max"),
        repeats=("repeat", "nunique"),
    ).reset_index()
    shown = medians.assign(
        **{
            "link ms/hop": medians.latency_label,
            "TTFT ms": (medians.ttft * 1e3).map("{:.1f}".format),
            "limit ms": (medians.limit * 1e3).map("{:.1f}".format),
            "round trip ms": (medians.round_trip * 1e3).map("{:.2f}".format).replace("nan", "-"),
            "x limit": (medians.token / medians.limit).map("{:.1f}".format),
            "anon MB": (medians.memory / 1e6).map("{:.0f}".format),
            "token ms [min, max]": [
                f"{row.token * 1e3:.1f} [{row.low * 1e3:.1f}, {row.high * 1e3:.1f}]"
                for row in medians.itertuples()
            ],
        }
    ).rename(columns={"name": "system"})
    columns = [
        *(["panel"] if rows.panel.nunique() > 1 else []),
        "system",
        "link ms/hop",
        "round trip ms",
        "TTFT ms",
        "token ms [min, max]",
        "limit ms",
    ]
    return shown[[*columns, "x limit", "anon MB", "repeats"]].to_string(index=False)


def draw(rows: pd.DataFrame) -> Figure:
    """Median token latency with the range of the repeats; dashed, each system's physical limit.

    Measured rows and those of virtual time, for each precision, are panels side by side. What one
    device does alone is a level grey line, named at the right.
    """
    names_of_panels = list(dict.fromkeys(rows.panel))
    labels = list(dict.fromkeys(rows[rows.num_devices > 1].line))
    styles = looks.line_styles(labels)
    figure = figures.new_figure(3.3, num_columns=len(names_of_panels))
    panels = figure.subplots(1, len(names_of_panels), squeeze=False)[0]
    for axes, panel in zip(panels, names_of_panels, strict=True):
        own = rows[rows.panel == panel]
        unit = 1.0 if (own.clock == "virtual").all() else 1e3
        latencies = sorted(own.loc[own.num_devices > 1, "link_latency_ms"].unique())
        for label in labels:
            line = own[(own.line == label) & (own.num_devices > 1)]
            if not line.empty:
                _draw_line(axes, line, label, styles[label], unit)
        alone = own[own.num_devices == 1]
        for _, line in alone.groupby("line"):
            _draw_flat(axes, line, latencies, unit)
        figures.log_milliseconds(axes)
        times = alone.groupby("line").token_latency_s.median() * unit
        shared = set(own[own.num_devices > 1].line)  # names that several devices have, too
        _name_at_right(axes, times.rename({name: f"{name},\nalone" for name in shared}))
        axes.set_ylabel(f"token latency ({'s' if unit == 1 else 'ms'})", fontsize=7)
        topology = own.loc[own.num_devices > 1, "topology"]
        hops = f", {topology.iloc[0]}" if len(topology) else ""
        axes.set_xlabel(f"link latency (ms a hop{hops})", fontsize=6.5)
        axes.set_title(_title(own), fontsize=6)
    if len(panels) > 1:
        figures.name_ends(panels[-1])
    handles = dict(zip(*reversed(figures.handles_of(panels)), strict=True))
    if (rows.num_devices == 1).any():
        alone = rows[(rows.num_devices == 1) & (rows.clock == "wall")]
        threads = alone.threads_per_device
        number = f", {threads.max():.0f} threads" if len(threads) else ""
        handles[f"one device alone{number}"] = panels[0].plot([], [], color=looks.ALONE)[0]
    (limit,) = panels[0].plot([], [], **looks.LIMIT)
    handles["physical limit of each"] = limit
    columns = 2 if len(names_of_panels) == 1 else 4
    figure.legend(
        handles.values(), handles.keys(), ncol=columns, loc="outside lower center", frameon=False
    )
    return figure


def _title(rows: pd.DataFrame) -> str:
    """The model and how it was timed; the devices and what they hold, or share."""
    largest = rows.loc[rows.num_devices.idxmax()]
    if largest.clock == "virtual":
        windows = _windows(rows)
        window = "window or none" if windows else "all held"
        held = names.precision_name(largest.weights)
        devices = names.device_name(largest.device)
        return f"{names.model_name(largest.model)} in {held}, virtual,\n{devices}, {window}"
    shared = ", sharing cores" if rows.devices_share_cores.any() else ""
    own = rows[rows.num_devices > 1].threads_per_device
    threads = f" of {own.iloc[0]:.0f} thread{'s' * int(own.iloc[0] > 1)}" if len(own) else ""
    devices = f"{largest.num_devices} device{'s' * int(largest.num_devices > 1)}{threads}"
    return f"{names.model_name(largest.model)}, measured,\n{devices}{shared}"


def _draw_line(
    axes: Axes, rows: pd.DataFrame, label: str, style: dict[str, Any], unit: float
) -> None:
    by_latency = rows.groupby("link_latency_ms")
    middle = by_latency.token_latency_s.median() * unit
    low, high = by_latency.token_latency_s.min() * unit, by_latency.token_latency_s.max() * unit
    spread = [middle - low, high - middle]
    axes.errorbar(middle.index, middle, yerr=spread, label=label, capsize=1.5, **style)
    limit = by_latency.limit_token_s.median() * unit
    axes.plot(limit.index, limit, **{**looks.LIMIT, "color": style["color"]})


def _draw_flat(axes: Axes, rows: pd.DataFrame, latencies: list[float], unit: float) -> None:
    """A single device knows no link: a line across, with the range as a band."""
    ends = [min(latencies, default=0.0), max(latencies, default=1.0)]
    times = rows.token_latency_s * unit
    axes.plot(ends, [times.median()] * 2, color=looks.ALONE)
    axes.fill_between(ends, times.min(), times.max(), color=looks.ALONE, alpha=0.2, linewidth=0)
    limit = rows.limit_token_s.median() * unit
    axes.plot(ends, [limit] * 2, **{**looks.LIMIT, "color": looks.ALONE})


def _name_at_right(axes: Axes, times: pd.Series) -> None:
    """The names of level lines beside the panel, each at its line's height or just above others."""
    low, high = (math.log(end) for end in axes.get_ylim())
    height = -1.0
    for name, time in times.sort_values().items():
        height = max((math.log(time) - low) / (high - low), height + _NAME_HEIGHT)
        axes.text(
            1.01,
            height,
            str(name),
            color=looks.ALONE,
            fontsize=6,
            verticalalignment="center",
            transform=axes.transAxes,
        )


def _windows(rows: pd.DataFrame) -> set[str]:
    """The windows that are set; YAML reads `off` as False."""
    found = rows.system_window.dropna() if "system_window" in rows else []
    return set(found) - {"off", "False", "None"}


def _line_name(row: dict) -> str:
    """As in the legend of all panels."""
    if row["clock"] == "wall":
        return row["name"].removesuffix(", 1 device")
    return row["name"].partition(f", {row['num_devices']} device")[0]


def _good(runs: pd.DataFrame) -> pd.DataFrame:
    """Points that succeeded, with their name and line, in the order of first measuring.

    `memory_bytes` is the anonymous peak of measured rows and the ledger of virtual ones.
    """
    good = succeeded(runs)
    good["panel"] = [_panel(row) for row in good.to_dict("records")]
    good["name"], good["line"] = "", ""
    for panel in good.panel.unique():
        rows = good.panel == panel
        good.loc[rows, "name"] = names.labels(good[rows])
        lines = [_line_name(row) for row in good[rows].to_dict("records")]
        good.loc[rows, "line"] = lines
    good["memory_bytes"] = good.peak_anon_bytes.fillna(good.ledger_bytes)
    good["latency_label"] = [
        "-" if row["num_devices"] == 1 else f"{row['link_latency_ms']:g}"
        for row in good.to_dict("records")
    ]
    for column in ("panel", "name"):
        found = list(dict.fromkeys(good[column]))
        good[f"{column}_order"] = good[column].map(found.index)
    return good.assign(is_virtual=good.clock == "virtual").sort_values(
        ["is_virtual", "panel_order", "name_order", "link_latency_ms", "repeat"], kind="stable"
    )


def _panel(row: dict) -> str:
    """Measured rows are in one, those of virtual time by what weights are held in."""
    return "wall" if row["clock"] == "wall" else f"virtual {row['weights']}"


DRAWING = Drawing(
    name="fig_latency",
    rows=_good,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
