"""Where do more devices stop helping, and what do faster devices change?

Doubts 15 and 20 of TPI-LLM's reviewers. A device reads its share of the weights at the rate of its
memory, so a token of tensor parallelism shrinks as 1/n until the links are what is left, and these
grow with n; a pipeline reads one share after another and gains nothing. By memory bandwidth and
network, in virtual time; a ring marks how many devices are best. Below it this host, where weights
of 4 bit are what faster memory would be. Run it with `python -m tpi_bench
+experiment=fig_roofline`; draw it again with `python -m experiments.fig_roofline FOLDER`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded
from tpi_bench.report.statistics import paired_ratio

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_RING: dict[str, Any] = {
    "marker": "o",
    "color": "k",
    "fillstyle": "none",
    "markersize": 7,
    "linestyle": "",
}
_KEYS = ["model", "network", "memory_gbps"]


def table(rows: pd.DataFrame) -> str:
    """A line a model, network and memory: how many devices are best, by what; then measured."""
    import pandas as pd

    virtual = rows[rows.clock == "virtual"]
    parts = []
    if len(virtual):
        parts.append(pd.DataFrame(list(_best_lines(virtual))).to_string(index=False))
    return "\n".join([*parts, *_measured(rows[rows.clock != "virtual"])])


def _best_lines(rows: pd.DataFrame) -> Iterator[dict[str, str]]:
    for (model, network, memory), own in rows.groupby(_KEYS, sort=False):
        best = own.loc[own.token_latency_s.idxmin()]
        alone = own[own.num_devices == own.num_devices.min()].token_latency_s.min()
        by_line = {
            line: group.loc[group.token_latency_s.idxmin()]
            for line, group in own.groupby("line", sort=False)
        }
        yield {
            "model": names.model_name(model),
            "network": " ".join(str(network).split()),
            "memory GB/s": f"{memory:g}",
            "one device ms": f"{alone * 1e3:.4g}",
            **{
                f"{line} ms (devices)": f"{row.token_latency_s * 1e3:.4g} ({row.num_devices:.0f})"
                for line, row in by_line.items()
            },
            "best": f"{best.num_devices:.0f} {best.line}" if best.num_devices > 1 else "1",
            "times as fast": f"{alone / best.token_latency_s:.2f}",
            "links of its limit": f"{best.limit_network_s / best.limit_token_s:.0%}",
        }


def _measured(rows: pd.DataFrame) -> Iterator[str]:
    """Two devices beside one, repeat by repeat."""
    for weights, own in rows.groupby("weights", sort=False):
        alone = own[own.num_devices == 1].set_index("repeat").token_latency_s
        if alone.empty:
            continue
        yield (
            f"measured, {names.model_name(own.model.iloc[0])} in {names.precision_name(weights)}: "
            f"one device {alone.median() * 1e3:.1f} ms"
        )
        several = own[own.num_devices > 1]
        for (line, latency), group in several.groupby(["line", "link_latency_ms"], sort=False):
            times = group.set_index("repeat").token_latency_s
            ratio = paired_ratio(times, alone)
            yield (
                f"  {group.num_devices.iloc[0]:.0f} devices, {line}, {latency:g} ms a hop: "
                f"{times.median() * 1e3:.1f} ms, {ratio.text('{:.2f}')} of one's"
            )


def draw(rows: pd.DataFrame) -> Figure:
    """A row a network, a column a memory bandwidth, of the largest model; below, measured."""
    is_virtual = rows.clock == "virtual"
    virtual, measured = rows[is_virtual & (rows["size"] == rows["size"].max())], rows[~is_virtual]
    if virtual.empty:  # of what is measured alone
        virtual = rows[is_virtual]
    styles = looks.line_styles(list(rows.line))
    heights = [1.35 * virtual.network.nunique()] if len(virtual) else []
    heights += [1.6] if len(measured) else []
    figure = figures.new_figure(0.8 + sum(heights), num_columns=2)
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    panels: list[Axes] = []
    if len(virtual):
        panels += _draw_virtual(parts[0], virtual, styles)
    if len(measured):
        panels += _draw_measured(parts[-1], measured, styles)
    handles, called = figures.handles_of(panels)
    handles += panels[0].plot([], [], **_RING)
    handles += panels[0].plot([], [], **looks.LIMIT)
    called += ["the best number of devices", "physical limit of each"]
    figure.legend(handles, called, loc="outside lower center", ncol=5)
    return figure


def _draw_virtual(
    part: SubFigure, rows: pd.DataFrame, styles: dict[str, dict[str, Any]]
) -> list[Axes]:
    networks, memories = list(dict.fromkeys(rows.network)), sorted(rows.memory_gbps.unique())
    panels = part.subplots(len(networks), len(memories), squeeze=False, sharex=True, sharey="col")
    for row, network in zip(panels, networks, strict=True):
        for axes, memory in zip(row, memories, strict=True):
            own = rows[(rows.network == network) & (rows.memory_gbps == memory)]
            _draw_devices(axes, own, styles)
        row[0].set_ylabel(f"{network}\ntoken latency (s)", fontsize=6.5)
    for axes, memory in zip(panels[0], memories, strict=True):
        figures.log_milliseconds(axes)  # of the whole column
        axes.set_title(f"memory {memory:g} GB/s", fontsize=7)
    for axes in panels[-1]:
        axes.set_xlabel("devices")
    model, weights = names.model_name(rows.model.iloc[0]), rows.weights.iloc[0]
    words = f"{model} in {names.precision_name(weights)}, all held; virtual time"
    part.suptitle(words, fontsize=7.5)
    return list(panels.flatten())


def _draw_devices(axes: Axes, own: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    for line, style in styles.items():
        group = own[own.line == line].sort_values("num_devices")
        if len(group):
            axes.plot(group.num_devices, group.token_latency_s, label=line, **style)
            limit = {**looks.LIMIT, "color": style["color"]}
            axes.plot(group.num_devices, group.limit_token_s, **limit)
    if len(own):
        best = own.loc[own.token_latency_s.idxmin()]
        axes.plot(best.num_devices, best.token_latency_s, **_RING)
    figures.log_values(axes, own.num_devices)


def _draw_measured(
    part: SubFigure, rows: pd.DataFrame, styles: dict[str, dict[str, Any]]
) -> list[Axes]:
    kinds = list(dict.fromkeys(rows.weights))
    panels = part.subplots(1, len(kinds), squeeze=False)[0]
    for axes, weights in zip(panels, kinds, strict=True):
        own = rows[rows.weights == weights]
        several = own[own.num_devices > 1]
        for line, group in several.groupby("line", sort=False):
            times = group.groupby("link_latency_ms").token_latency_s.agg(["median", "min", "max"])
            spread = [times["median"] - times["min"], times["max"] - times["median"]]
            axes.errorbar(
                times.index,
                times["median"] * 1e3,
                [each * 1e3 for each in spread],
                label=str(line),
                **styles[str(line)],
            )
            limit = group.groupby("link_latency_ms").limit_token_s.median() * 1e3
            color = styles[str(line)]["color"]
            axes.plot(limit.index, limit, **{**looks.LIMIT, "color": color})
        alone = own[own.num_devices == 1].token_latency_s * 1e3
        if len(alone):
            axes.axhline(alone.median(), color=looks.ALONE)
            axes.axhspan(alone.min(), alone.max(), color=looks.ALONE, alpha=0.2, linewidth=0)
            axes.text(
                1.01,
                alone.median(),
                "one device",
                transform=axes.get_yaxis_transform(),
                color=looks.ALONE,
                fontsize=6,
                va="center",
            )
        model = names.model_name(own.model.iloc[0])
        axes.set_title(
            f"{model} in {names.precision_name(weights)}, measured: two devices of a core each",
            fontsize=6.5,
        )
        axes.set_xlabel("link latency (ms a hop)")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("token latency (ms)")
    return list(panels)


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """With the names of their `line` and `network`, and `memory_gbps`."""
    rows = succeeded(runs)
    cells = rows.to_dict("records")
    rows["line"] = [names.system_name(row) for row in cells]
    rows["network"] = [
        f"{row['link_latency_ms']:g} ms a hop,\n{_rate(row['bandwidth_mbps'])}" for row in cells
    ]
    rows["memory_gbps"] = (rows.memory_bps / 1e9).round(3)
    return _alone_on_each(rows)


def _alone_on_each(rows: pd.DataFrame) -> pd.DataFrame:
    """One device in virtual time is one point, whatever the network: it begins each line."""
    import pandas as pd

    is_alone = (rows.clock == "virtual") & (rows.num_devices == 1)
    networks = list(dict.fromkeys(rows[(rows.clock == "virtual") & ~is_alone].network))
    first = rows.drop_duplicates("network").set_index("network").link_latency_ms
    alone = [
        rows[is_alone].assign(network=network, link_latency_ms=first[network])
        for network in networks
    ]
    found = pd.concat([*alone, rows[~is_alone]], ignore_index=True)
    found["place"] = -found.groupby("network").link_latency_ms.transform("min")
    found["size"] = found.groupby("model").limit_memory_s.transform("max")
    order = {line: number for number, line in enumerate(dict.fromkeys(rows.line))}
    found["line_place"] = found.line.map(order)
    keys = ["size", "place", "memory_gbps", "line_place", "num_devices"]
    return found.sort_values(keys, kind="stable")


def _rate(mbps: float) -> str:
    if not mbps:
        return "no limit"
    return f"{mbps / 1e3:g} Gbit/s" if mbps >= 1000 else f"{mbps:g} Mbit/s"


DRAWING = Drawing(name="fig_roofline", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
