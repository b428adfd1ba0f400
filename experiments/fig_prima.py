"""prima.cpp's ring in virtual time: when do rounds pay, what is Halda's choice worth, and how near
are its published figures?

Four alike devices tell what rounds do, by memory, disk and link latency, with the layers divided
evenly. On the four devices of prima.cpp (arXiv 2504.08791, two of which have GPUs there, which
nobody has here) stand its planner's choices beside those of others, and by the size of the model
what is published. Run it with `python -m tpi_bench +experiment=fig_prima`; draw it again with
`python -m experiments.fig_prima FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ms a token and to the first one, Q4_K (its table 2): 8B, 30B, 60B and 70B, with both GPUs.
PUBLISHED = {
    "llama3.1_8b": (15, 18),
    "llama_30b": (72, 214),
    "llama3_60b": (468, 990),
    "llama3.1_70b": (674, 1793),
}
_SIZES = {"llama3.1_8b": 8, "llama_30b": 30, "llama3_60b": 60, "llama3.1_70b": 70}
_OBJECTIVES = {
    "code": "Halda as its program",
    "paper": "Halda",
    "overlap": "Halda, hidden loads left out",
}
_PLANNERS = {
    "proportional": "even",
    "memory": "by memory (exo)",
    "waterfill": "water-filling (Parallax)",
    "edgeshard": "EdgeShard's",
}
_USUAL = ("memory_gb", "disk_gbps", "link_latency_ms")


def table(rows: pd.DataFrame) -> str:
    """Rounds on alike devices, planners on prima.cpp's, and sizes beside what is published."""
    text = []
    alike, home = rows[~rows.is_home], rows[rows.is_home]
    if len(alike):
        text += ["four alike devices: s a token by rounds", *_rounds_table(alike)]
    ring = home[home.system == "prima"]
    biggest = ring[ring.model == _most_common(ring.model)] if len(ring) else ring
    if len(biggest):
        text.append(f"prima.cpp's four devices, {biggest.model.iloc[0]}: s a token by rounds")
        shown = biggest.pivot_table(
            index="planner", columns="rounds", values="token_latency_s", sort=False
        )
        text.append(shown[_in_order(shown.columns)].to_string(float_format="{:.2f}".format))
        text += _won(biggest)
    text += _sizes(home)
    return "\n".join(text)


def _rounds_table(alike: pd.DataFrame) -> list[str]:
    ring = alike[alike.system == "prima"]
    shown = ring.pivot_table(
        index=[*_USUAL, "loads"], columns="rounds", values="token_latency_s", sort=False
    )
    text = [shown[_in_order(shown.columns)].to_string(float_format="{:.2f}".format)]
    for key, group in ring.groupby([*_USUAL, "loads"], sort=False):
        one = group[group.rounds == "1"].token_latency_s
        best = group.loc[group.token_latency_s.idxmin()]
        if len(one):
            memory, disk, latency, loads = key
            text.append(
                f"{memory:g} GB, {disk:g} GB/s, {latency:g} ms a hop, {loads}: rounds of the "
                f"fastest: {best.rounds}, taking {best.token_latency_s / one.iloc[0]:.2f} of one"
            )
    others = alike[alike.system != "prima"]
    text += [
        f"{row.line} at {row.link_latency_ms:g} ms a hop: {row.token_latency_s:.2f} s"
        for row in others.itertuples()
    ]
    return text


def chosen_by_halda(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of prima.cpp's own devices that its planner divides as its paper says."""
    is_chosen = (rows.rounds == "auto") & (rows.planner == _OBJECTIVES["paper"])
    return rows[rows.is_home & is_chosen]


def _won(rows: pd.DataFrame) -> list[str]:
    """Each planner at its best, beside Halda's own choice."""
    chosen = chosen_by_halda(rows)
    if chosen.empty:
        return []
    own_s = float(chosen.token_latency_s.iloc[0])
    best = rows.loc[rows.groupby("planner", sort=False).token_latency_s.idxmin()]
    return [
        f"{row.planner} at its best ({row.rounds} rounds): {row.token_latency_s:.2f} s, "
        f"{row.token_latency_s / own_s:.2f} of Halda's choice"
        for row in best.itertuples()
    ]


def _sizes(home: pd.DataFrame) -> list[str]:
    lines = []
    for model, group in home[home.rounds.isin(["auto", ""])].groupby("model", sort=False):
        for row in group.itertuples():
            words = f"{model}, {row.line}: {row.token_latency_s * 1e3:.0f} ms a token, first "
            words += f"{row.ttft_s * 1e3:.0f}"
            if row.system == "prima" and model in PUBLISHED:
                token_ms, first_ms = PUBLISHED[str(model)]
                ratio = row.token_latency_s * 1e3 / token_ms
                words += f"; published {token_ms} and {first_ms} (ratio {ratio:.1f})"
            lines.append(words)
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """Above, rounds on alike devices by what is varied; below, planners, and sizes."""
    alike, home = rows[~rows.is_home], rows[rows.is_home]
    figure = figures.new_figure(5.0, num_columns=2)
    halves = figure.add_gridspec(2, 1)
    above, below = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    panels = above.subplots(1, 3, sharey=True)
    words = {
        "memory_gb": "{:g} GB",
        "disk_gbps": "{:g} GB/s disk",
        "link_latency_ms": "{:g} ms a hop",
    }
    for axes, (name, pattern) in zip(panels, words.items(), strict=True):
        _draw_rounds(axes, alike, name, pattern)
    panels[0].set_ylabel("token latency (s)")
    left, right = below.subplots(1, 2)
    _draw_planners(left, home)
    _draw_sizes(right, home)
    first = rows.iloc[0]
    figure.suptitle(
        f"prima.cpp's ring in virtual time, weights in {first.weights}; above four alike devices, "
        "below its own four, CPUs alone",
        fontsize=7.5,
    )
    return figure


def _draw_rounds(axes: Axes, alike: pd.DataFrame, name: str, pattern: str) -> None:
    """Lines by one of what is varied, the others at their most frequent value."""
    ring = alike[(alike.system == "prima") & (alike.rounds != "auto")]
    for other in _USUAL:
        if other != name and len(ring):
            ring = ring[ring[other] == _most_common(alike[other])]
    if ring.empty:
        return
    kinds = sorted(set(zip(ring[name], ring.loads, strict=True)))
    kinds = [kind for kind in kinds if name == "memory_gb" or kind[1] == "loaded ahead"]
    labels = [pattern.format(value) + _short_of(loads) for value, loads in kinds]
    colours = looks.shades(labels)
    for (value, loads), (label, marker) in zip(kinds, figures.with_markers(labels), strict=True):
        line = ring[(ring[name] == value) & (ring.loads == loads)]
        line = line.assign(count=line.rounds.astype(int)).sort_values("count")
        axes.plot(
            line["count"], line.token_latency_s, marker=marker, color=colours[label], label=label
        )
    figures.log_values(axes, [int(rounds) for rounds in ring.rounds])
    figures.log_milliseconds(axes)
    axes.set_xlabel("rounds")
    axes.legend(fontsize=6)


def _short_of(loads: str) -> str:
    return "" if loads == "loaded ahead" else ", when needed"


def _draw_planners(axes: Axes, home: pd.DataFrame) -> None:
    ring = home[home.system == "prima"]
    if ring.empty:
        return
    ring = ring[ring.model == _most_common(ring.model)]
    planners = list(dict.fromkeys(ring.planner))
    counts = _in_order(ring.rounds.unique())
    colours = looks.shades(counts)
    for number, (count, marker) in enumerate(figures.with_markers(counts)):
        own = ring[ring.rounds == count]
        places = [
            planners.index(planner) + 0.1 * (number - len(counts) / 2) for planner in own.planner
        ]
        label = {"auto": "as planned", "1": "1 round"}.get(count, f"{count} rounds")
        axes.plot(own.token_latency_s, places, marker, color=colours[count], label=label)
    axes.set_yticks(range(len(planners)), planners, fontsize=6)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"token latency of {names.model_name(ring.model.iloc[0])} (s)")
    axes.legend(fontsize=6)


def _draw_sizes(axes: Axes, home: pd.DataFrame) -> None:
    own = home[home.rounds.isin(["auto", ""]) & home.model.isin(list(_SIZES))]
    wanted = [*(_OBJECTIVES[name] for name in ("paper", "overlap")), ""]
    own = own[own.planner.isin(wanted)]
    for label, style in looks.line_styles(list(own.line)).items():
        line = own[own.line == label]
        line = line.assign(size=line.model.map(_SIZES)).sort_values("size")
        axes.plot(line["size"], line.token_latency_s, label=label, **style)
    sizes = [_SIZES[model] for model in PUBLISHED]
    seconds = [token_ms / 1e3 for token_ms, _ in PUBLISHED.values()]
    axes.plot(sizes, seconds, **looks.PAPER, label="published, with two GPUs")
    figures.log_milliseconds(axes)
    axes.set_ylim(top=30 * axes.get_ylim()[1])  # for the legend
    axes.set_xlabel("billions of weights")
    axes.set_ylabel("token latency (s)")
    axes.legend(fontsize=6)


def _in_order(counts: Any) -> list[str]:
    """Numbers of rounds by size, and those that a planner chose first."""
    return sorted(counts, key=lambda count: -1 if count == "auto" else int(count))


def _most_common(values: pd.Series) -> Any:
    return values.mode().iloc[0]


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Those that succeeded, with what tells them apart: `planner`, `rounds`, `loads`, `memory_gb`,
    `disk_gbps`, whether it `is_home`, and the name of their `line`.
    """
    rows = succeeded(runs)
    cells = rows.to_dict("records")
    rows["is_home"] = ["prima_mac_m1" in str(row["device"]) for row in cells]
    rows["planner"] = [_planner(row) for row in cells]
    rows["rounds"] = [
        str(row["system_rounds"]) if row["system"] == "prima" else "" for row in cells
    ]
    rows["loads"] = [
        "when needed" if row.get("system_prefetch") == "False" else "loaded ahead" for row in cells
    ]
    rows["memory_gb"] = (rows.memory_mb / 1e3).fillna(0.0)
    rows["disk_gbps"] = (rows.disk_bps / 1e9).round(2)
    rows["line"] = [
        f"prima, {_planner(row)}" if row["system"] == "prima" else str(row["label"])
        for row in cells
    ]
    return rows


def _planner(row: Any) -> str:
    """Of a ring, in words."""
    if row["system"] != "prima":
        return ""
    planner = str(row["system_planner"])
    return _PLANNERS.get(planner) or _OBJECTIVES[str(row["system_objective"])]


DRAWING = Drawing(name="fig_prima", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
