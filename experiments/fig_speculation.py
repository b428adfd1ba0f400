"""Speculation: how many drafted tokens are right, and what that makes of token latency.

Question it answers: by how much does exact speculation shorten a token where each pass costs link
latency or a scan of the disk (one pass pays for several tokens), on tensor parallelism and on a
pipeline. Run it with `python -m tpi_bench +experiment=fig_speculation`; draw it again from stored
rows with `python -m experiments.fig_speculation FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded
from tpi_bench.report.rows import BUSY_SHARE, STOLEN_SHARE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES: dict[str, Any] = {"none": ":", "lookup": "-", "draft": "--"}
_HATCHES = {"none": "", "lookup": "/////", "draft": "....."}
_WORDS = {"none": "plain", "lookup": "lookup", "draft": "draft model"}
_KEY = ["panel", "line", "workload", "link_latency_ms"]


def table(rows: pd.DataFrame) -> str:
    """Means of repeats that nobody disturbed, a line a system, text, link and way of drafting.

    `x plain` is how many times as fast as one token a pass of the same system and text.
    """
    groups = rows.groupby([*_KEY, "speculation", "acceptance_asked"], dropna=False, sort=False)
    found = groups.agg(
        token=("token_latency_s", "mean"),
        per_pass=("tokens_per_pass", "mean"),
        acceptance=("acceptance", "mean"),
        gain=("gain", "mean"),
        limit=("limit_token_s", "mean"),
        repeats=("repeat", "nunique"),
    ).reset_index()
    shown = found.assign(
        **{
            "link ms/hop": found.link_latency_ms.map("{:g}".format),
            "acceptance": found.acceptance.map("{:.2f}".format).replace("nan", "-"),
            "tokens a pass": found.per_pass.map("{:.2f}".format),
            "token ms": (found.token * 1e3).map("{:.1f}".format),
            "limit ms": (found.limit * 1e3).map("{:.1f}".format),
            "x plain": found.gain.map("{:.2f}".format).replace("nan", "-"),
        }
    ).rename(columns={"line": "system", "workload": "text"})
    columns = ["panel", "system", "text", "speculation", "link ms/hop", "acceptance"]
    columns += ["tokens a pass", "token ms", "limit ms", "x plain", "repeats"]
    return shown[columns].to_string(index=False)


def draw(rows: pd.DataFrame) -> Figure:
    """Measured: acceptance by text, and token latency by link latency over all texts. Virtual:
    token latency by acceptance, in 4 bit and in fp32, against one token a pass (dotted).
    """
    measured, virtual = rows[rows.panel == "measured"], rows[rows.panel != "measured"]
    panels = list(dict.fromkeys(virtual.panel))
    count = (2 if len(measured) else 0) + len(panels)
    if (rows.num_devices == 1).all():
        return _draw_alone(measured)
    figure = figures.new_figure(3.2, num_columns=2)
    drawn = list(figure.subplots(1, count, squeeze=False)[0])
    labels = list(dict.fromkeys(rows[rows.num_devices > 1].line)) or list(dict.fromkeys(rows.line))
    styles = looks.line_styles(labels)
    if len(measured):
        _draw_acceptance(drawn.pop(0), measured)
        _draw_by_latency(drawn.pop(0), measured[measured.line.isin(labels)], styles)
    for axes, panel in zip(drawn, panels, strict=True):
        _draw_by_acceptance(axes, virtual[virtual.panel == panel], styles)
    _legend(figure, styles, [kind for kind in _STYLES if (rows.speculation == kind).any()])
    return figure


def _draw_acceptance(axes: Axes, rows: pd.DataFrame) -> None:
    """Bars by text; above each, the tokens that a pass gave."""
    drafted = rows[rows.speculation != "none"]
    drafted = drafted.assign(library=drafted.label.where(drafted.is_library, ""))
    kinds = list(dict.fromkeys(zip(drafted.speculation, drafted.library, strict=True)))
    texts = list(dict.fromkeys(drafted.workload))
    width = 0.8 / max(1, len(kinds))

    def style_of(kind: str, library: str) -> dict[str, Any]:
        shade = list(_STYLES).index(kind)
        if not library and drafted[~drafted.is_library].line.nunique() > 1:
            return {"color": str(0.05 + 0.25 * shade)}
        label = library or drafted[~drafted.is_library].label.iloc[0]
        is_one_way = sum(other == library for _, other in kinds) == 1
        hatch = "" if is_one_way else _HATCHES[kind]
        return {"facecolor": looks.look_of(label).colour, "hatch": hatch, "edgecolor": "white"}

    for number, (kind, library) in enumerate(kinds):
        own = drafted[(drafted.speculation == kind) & (drafted.library == library)]
        means = own.groupby("workload")[["acceptance", "tokens_per_pass"]].mean().reindex(texts)
        places = [i + (number - (len(kinds) - 1) / 2) * width for i in range(len(texts))]
        ways = sum(other == library for _, other in kinds)
        if library:
            own_name = f"{library}, its own" if ways == 1 else f"{library}, {_WORDS[kind]}"
        else:
            own_name = _WORDS[kind]
        axes.bar(places, means.acceptance, width * 0.95, label=own_name, **style_of(kind, library))
        for place, (share, tokens) in zip(places, means.to_numpy(), strict=True):
            above = share + 0.02
            axes.text(place, above, f"{tokens:.1f}", ha="center", rotation=90, fontsize=6)
    axes.set_xticks(range(len(texts)), texts)
    axes.set_ylim(0, 1.15 + 0.11 * len(kinds))  # room for their names
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_ylabel("drafted tokens that are right", fontsize=7)
    axes.set_title(
        f"{names.model_name(rows.model.iloc[0])}, measured;\nabove: tokens a pass", fontsize=6.5
    )
    axes.legend(
        fontsize=6,
        loc="upper left",
        frameon=False,
        handlelength=1.2,
        handletextpad=0.4,
        borderaxespad=0.2,
    )


def _draw_alone(rows: pd.DataFrame) -> Figure:
    """On one device: acceptance by text, and token latency by text, a bar a way of drafting."""
    figure = figures.new_figure(3.2, num_columns=2)
    acceptance, latency = figure.subplots(1, 2)
    _draw_acceptance(acceptance, rows)
    acceptance.get_legend().remove()
    acceptance.set_ylim(0, 1.2)
    texts = list(dict.fromkeys(rows.workload))
    bars = [(line, kind) for line in dict.fromkeys(rows.line) for kind in _STYLES]
    means = rows.groupby(["line", "speculation", "workload"]).token_latency_s.mean() * 1e3
    bars = [bar for bar in bars if bar in means.index.droplevel("workload")]
    width = 0.85 / len(bars)
    for number, (line, kind) in enumerate(bars):
        places = [i + (number - (len(bars) - 1) / 2) * width for i in range(len(texts))]
        own = means[line, kind].reindex(texts)
        colour = looks.look_of(rows[rows.line == line].label.iloc[0]).colour
        style = {"facecolor": colour, "hatch": _HATCHES[kind], "edgecolor": "white"}
        latency.bar(places, own, width * 0.95, label=f"{line}, {_WORDS[kind]}", **style)
    latency.set_xticks(range(len(texts)), texts)
    latency.set_ylabel("token latency (ms)", fontsize=7)
    latency.set_title("one device, all cores", fontsize=6.5)
    figure.legend(*latency.get_legend_handles_labels(), ncol=3, loc="outside lower center")
    return figure


def _draw_by_latency(axes: Axes, rows: pd.DataFrame, styles: dict) -> None:
    for (line, kind), own in rows[rows.num_devices > 1].groupby(["line", "speculation"]):
        means = own.groupby("link_latency_ms").token_latency_s.mean() * 1e3
        style = {**styles[line], "linestyle": _STYLES[kind], "label": f"{line}, {_WORDS[kind]}"}
        axes.plot(means.index, means, **style)
    figures.log_milliseconds(axes)
    axes.set_xlabel(f"link latency (ms a hop, {rows.topology.iloc[0]})", fontsize=7)
    axes.set_ylabel("token latency (ms), mean of the texts", fontsize=7)
    shared = ", sharing cores" if rows.devices_share_cores.eq(True).any() else ""
    number = rows.num_devices.max()
    axes.set_title(
        f"{names.model_name(rows.model.iloc[0])}, measured,\n{number} devices{shared}", fontsize=6.5
    )


def _draw_by_acceptance(axes: Axes, rows: pd.DataFrame, styles: dict) -> None:
    """At the link latency that most rows have beside 0, or the least above it."""
    latencies = sorted(rows.link_latency_ms.unique())
    latency = next((each for each in latencies if each > 0), latencies[0])
    own = rows[rows.link_latency_ms == latency]
    ends = [own.acceptance_asked.min(), own.acceptance_asked.max()]
    for (line, kind), group in own.groupby(["line", "speculation"]):
        if kind == "none":
            times, shares = [group.token_latency_s.mean()] * 2, ends
        else:
            means = group.groupby("acceptance_asked").token_latency_s.mean()
            times, shares = list(means), list(means.index)
        style = {**styles[line], "linestyle": _STYLES[kind], "label": f"{line}, {_WORDS[kind]}"}
        axes.plot(shares, times, **(style | ({"marker": ""} if kind == "none" else {})))
    figures.log_milliseconds(axes)
    first = own.iloc[0]
    axes.set_xlabel("chance of a right draft", fontsize=7)
    axes.set_ylabel("token latency (s)", fontsize=7)
    axes.set_title(
        f"{names.model_name(first.model)} in {names.precision_name(first.weights)},\nvirtual, "
        f"{first.num_devices:.0f} devices,\n{latency:g} ms a hop",
        fontsize=6.5,
    )


def _legend(figure: Figure, styles: dict, kinds: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=line, **style) for line, style in styles.items()]
    handles += [
        Line2D([], [], color="0.4", linestyle=_STYLES[kind], label=_WORDS[kind]) for kind in kinds
    ]
    figure.legend(handles=handles, ncol=6, loc="outside lower center", frameon=False)


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Points that succeeded, each with its panel, its line, and how much faster it is than the same
    without speculation.
    """
    good = succeeded(runs)
    if good.empty or "speculation" not in good:
        return good[:0]
    good = _undisturbed(good)
    good["panel"] = [
        "measured" if row["clock"] == "wall" else f"virtual {row['weights']}"
        for row in good.to_dict("records")
    ]
    good["line"] = [_line(row) for row in good.to_dict("records")]
    good["speculation"] = good.speculation.fillna("none")
    plain = good[good.speculation == "none"].groupby(_KEY).token_latency_s.mean()
    keys = [tuple(key) for key in good[_KEY].itertuples(index=False)]
    found = dict(zip(plain.index, plain, strict=True))
    gains = [found.get(key, float("nan")) for key in keys]
    good["gain"] = [
        time / own if kind != "none" else float("nan")
        for time, own, kind in zip(gains, good.token_latency_s, good.speculation, strict=True)
    ]
    return good


def _undisturbed(rows: pd.DataFrame) -> pd.DataFrame:
    """Without repeats during which others took much of the host, where another repeat is there."""
    busy = rows[["busy_cores_start", "busy_cores_end"]].max(axis=1) > BUSY_SHARE * rows.cores
    busy |= rows.steal_share > STOLEN_SHARE
    keys = ["system", "label", "workload", "speculation", "link_latency_ms", "num_devices"]
    keys += ["weights", "clock", "acceptance_asked"]
    other = ~busy.groupby([rows[key] for key in keys], dropna=False).transform("all")
    return rows[~(busy & other)]


def _line(row: dict) -> str:
    name = names.system_label(row).partition(" window")[0].removesuffix(" wire q8")
    is_alone = row["num_devices"] == 1 and not row["is_library"]
    return f"{name}, 1 device" if is_alone else name


DRAWING = Drawing(
    name="fig_speculation",
    rows=_rows,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
