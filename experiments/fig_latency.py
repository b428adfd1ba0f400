"""Token latency against link latency: TPI with three collectives, its window, and baselines.

Doubts it answers: is link latency the bottleneck of allreduce (claim 3 of the paper), does star
beat ring (claim 4), does tensor parallelism beat a pipeline for one request (claim 5), and what
does a one-step allreduce change. Run it with `python -m tpi_bench +experiment=fig_latency`; draw
it again from stored rows with `python -m experiments.fig_latency FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench import figures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "fig_latency"


def has_rows(runs: pd.DataFrame) -> bool:
    """Whether there is anything to draw."""
    return not _good(runs).empty


def table(runs: pd.DataFrame) -> str:
    """Medians over the repeats with the range, one line a system and link latency."""
    good = _good(runs)
    if good.empty:
        return "no point succeeded"
    groups = good.groupby(["label", "latency_label"], sort=False)
    rows = groups.agg(
        ttft=("ttft_s", "median"),
        token=("token_latency_s", "median"),
        low=("token_latency_s", "min"),
        high=("token_latency_s", "max"),
        limit=("limit_token_s", "median"),
        round_trip=("link_round_trip_s", "median"),
        memory=("peak_anon_bytes", "max"),
        repeats=("repeat", "nunique"),
    ).reset_index()
    rows["token ms [min, max]"] = [
        f"{r.token * 1e3:.1f} [{r.low * 1e3:.1f}, {r.high * 1e3:.1f}]" for r in rows.itertuples()
    ]
    shown = rows.assign(
        **{
            "link ms/hop": rows.latency_label,
            "TTFT ms": (rows.ttft * 1e3).map("{:.1f}".format),
            "limit ms": (rows.limit * 1e3).map("{:.1f}".format),
            "round trip ms": (rows.round_trip * 1e3).map("{:.2f}".format).replace("nan", "-"),
            "x limit": (rows.token / rows.limit).map("{:.1f}".format),
            "peak anon MB": (rows.memory / 1e6).map("{:.0f}".format),
        }
    ).rename(columns={"label": "system"})
    columns = [
        "system",
        "link ms/hop",
        "round trip ms",
        "TTFT ms",
        "token ms [min, max]",
        "limit ms",
    ]
    return shown[[*columns, "x limit", "peak anon MB", "repeats"]].to_string(index=False)


def draw(runs: pd.DataFrame) -> Figure:
    """Median token latency with the range of the repeats; dashed, each system's physical limit."""
    good = _good(runs)
    labels = list(dict.fromkeys(good.label))
    colours = figures.palette(labels)
    figure = figures.new_figure(2.9)
    axes = figure.subplots()
    latencies = sorted(good.loc[good.num_devices > 1, "link_latency_ms"].unique())
    for label, marker in zip(labels, figures.MARKERS, strict=False):
        rows = good[good.label == label]
        if (rows.num_devices == 1).all():
            _draw_flat(axes, rows, latencies, label, colours[label])
        else:
            _draw_line(axes, rows, label, colours[label], marker)
    devices = int(good.num_devices.max())
    topology = good.loc[good.num_devices > 1, "topology"]
    hops = f", {topology.iloc[0]} topology" if len(topology) else ""
    shared = " (sharing cores)" if good.devices_share_cores.any() else ""
    figures.log_milliseconds(axes)
    axes.set_xlabel(f"link latency (ms a hop{hops})")
    axes.set_ylabel("token latency (ms)")
    axes.set_title(f"{good.model.iloc[0]}, {devices} devices{shared}", fontsize=7.5)
    axes.plot([], [], color="0.4", linestyle="--", linewidth=0.7, label="physical limit of each")
    axes.legend(ncol=2, loc="upper left", bbox_to_anchor=(0, -0.22), borderaxespad=0, frameon=False)
    return figure


def _draw_line(axes: Axes, rows: pd.DataFrame, label: str, colour: object, marker: str) -> None:
    by_latency = rows.groupby("link_latency_ms")
    middle = by_latency.token_latency_s.median() * 1e3
    low, high = by_latency.token_latency_s.min() * 1e3, by_latency.token_latency_s.max() * 1e3
    spread = [middle - low, high - middle]
    axes.errorbar(
        middle.index, middle, yerr=spread, label=label, color=colour, marker=marker, capsize=1.5
    )
    limit = by_latency.limit_token_s.median() * 1e3
    axes.plot(limit.index, limit, color=colour, linestyle="--", linewidth=0.7)


def _draw_flat(
    axes: Axes, rows: pd.DataFrame, latencies: list[float], label: str, colour: object
) -> None:
    """A single device knows no link: a line across, with the range as a band."""
    ends = [min(latencies, default=0.0), max(latencies, default=1.0)]
    times = rows.token_latency_s * 1e3
    axes.plot(ends, [times.median()] * 2, color=colour, label=label)
    axes.fill_between(ends, times.min(), times.max(), color=colour, alpha=0.2, linewidth=0)
    axes.plot(
        ends, [rows.limit_token_s.median() * 1e3] * 2, color=colour, linestyle="--", linewidth=0.7
    )


def _good(runs: pd.DataFrame) -> pd.DataFrame:
    """Points that succeeded, with the label of their line, in the order of first measuring."""
    good = runs[(runs.status == "ok") & runs.token_latency_s.notna()].copy()
    good["label"] = figures.labels(good)
    good["latency_label"] = [
        "-" if row["num_devices"] == 1 else f"{row['link_latency_ms']:g}"
        for row in good.to_dict("records")
    ]
    order = {label: i for i, label in enumerate(dict.fromkeys(good.label))}
    good["order"] = good.label.map(order)
    return good.sort_values(["order", "link_latency_ms", "repeat"], kind="stable")


if __name__ == "__main__":
    figures.redraw(NAME, table, draw)
