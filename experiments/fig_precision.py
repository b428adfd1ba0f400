"""Llama 2-70B on the paper's eight devices by precision: against link latency, and by window.

With 4-bit weights everything fits in memory: what is left of the sliding window, and is link
latency the bottleneck then? And what becomes of the 26.1 s a token that TPI-LLM (arXiv 2410.00531,
its table 1) takes there in fp32, with a window of two and the star allreduce? Run it with
`python -m tpi_bench +experiment=fig_precision`; draw it again with `python -m
experiments.fig_precision FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_MODEL, PAPER_TOKEN_S, PAPER_LINK_MS = "llama2_70b", 26.1, 1.0
_WINDOWS = {"2": "window 2", "auto": "planned", "off": "all held"}
_LIMITS = {"limit_memory_s": "memory", "limit_network_s": "links", "limit_disk_s": "disk"}
_PACKED = "q8"


def table(rows: pd.DataFrame) -> str:
    """One line a point, what does not fit with its reason; then what the points say."""
    shown = rows.assign(
        **{
            "system": rows.system_name,
            "link ms/hop": rows.link_latency_ms,
            "token s": rows.token_latency_s,
            "limit s": rows.limit_token_s,
            **{f"{name} s": rows[column] for column, name in _LIMITS.items()},
            "largest": [_largest_limit(row) for row in rows.to_dict("records")],
            "GB a device": rows.ledger_bytes / 1e9,
        }
    )
    columns = ["precision", "system", "window", "wire", "link ms/hop", "token s", "limit s"]
    columns += [*(f"{name} s" for name in _LIMITS.values()), "largest", "GB a device", "status"]
    text = shown[columns].round(2).to_string(index=False, na_rep="-")
    return "\n".join([text, *_findings(rows)])


def _findings(rows: pd.DataFrame) -> list[str]:
    """The fastest of each precision, what of it is link latency, and what each window takes."""
    good, middle = succeeded(rows), _middle_ms(rows)
    lines = []
    for precision, all_ways in good.groupby("precision", sort=False):
        here = all_ways[all_ways.link_latency_ms == middle]
        if here.empty:
            continue
        best = here.loc[here.token_latency_s.idxmin()]
        line = f"{precision} at {middle:g} ms a hop: {best.token_latency_s:.2f} s a token ("
        line += f"{_way(best)}; limit {best.limit_token_s:.2f} s, mostly {_largest_limit(best)})"
        if best.model == PAPER_MODEL:
            times = PAPER_TOKEN_S / best.token_latency_s
            line += f"; the paper takes {times:.1f} times as long, {PAPER_TOKEN_S} s in fp32"
        lines.append(line)
        lines += [f"  {text}" for text in _of_latency(all_ways, best)]
        lines += [f"  fastest: {_by_latency(all_ways)}"]
        lines += [f"  {text}" for text in _of_window(rows[rows.precision == precision], best)]
    return lines


def _of_latency(rows: pd.DataFrame, best: pd.Series) -> list[str]:
    """How much faster the same is without link latency."""
    same = rows[rows.system_name == best.system_name]
    same = same[(same.window == best.window) & (same.wire == best.wire)]
    without = same[same.link_latency_ms == 0]
    if without.empty or not best.link_latency_ms:
        return []
    share = 1 - without.token_latency_s.iloc[0] / best.token_latency_s
    return [f"{share:.0%} of it is link latency: {without.token_latency_s.iloc[0]:.2f} s without"]


def _by_latency(rows: pd.DataFrame) -> str:
    """Who is the fastest at each link latency."""
    best = rows.loc[rows.groupby("link_latency_ms").token_latency_s.idxmin()]
    return "; ".join(
        f"at {row.link_latency_ms:g} ms {row.token_latency_s:.2f} s ({_way(row)})"
        for row in best.itertuples()
    )


def _of_window(rows: pd.DataFrame, best: pd.Series) -> list[str]:
    """The same system with each window, as computed on the wire."""
    same = rows[(rows.system_name == best.system_name) & (rows.wire == "auto")]
    same = same[same.link_latency_ms == best.link_latency_ms]
    if same.window.nunique() < 2:
        return []
    times = {
        row.window: f"{row.token_latency_s:.2f} s" if row.status == "ok" else row.status
        for row in same.itertuples()
    }
    return [f"{best.system_name}: " + ", ".join(f"{name} {time}" for name, time in times.items())]


def draw(rows: pd.DataFrame) -> Figure:
    """A column a precision: against link latency, below by window at the middle one, and TTFT."""
    precisions, systems = list(dict.fromkeys(rows.precision)), list(dict.fromkeys(rows.system_name))
    styles = looks.line_styles(systems)
    figure = figures.new_figure(5.8, num_columns=2)
    panels = figure.subplots(3, len(precisions), squeeze=False, sharey="row")
    for column, precision in enumerate(precisions):
        own = rows[rows.precision == precision]
        above, below, first = panels[:, column]
        _draw_lines(above, succeeded(own), systems, styles, "token_latency_s")
        _draw_lines(first, succeeded(own), systems, styles, "ttft_s")
        _draw_windows(below, own[own.link_latency_ms == _middle_ms(rows)], systems, styles)
        above.set_title(precision, fontsize=7.5)
        for axes in (above, first):
            axes.set_xlabel("link latency (ms a hop)")
            axes.set_xticks(sorted(ms for ms in set(own.link_latency_ms) if ms == round(ms)))
        if (rows.model == PAPER_MODEL).any():
            _mark_paper(above, below, is_its_precision=precision == "fp32")
    for axes in panels[:, 0]:
        figures.log_milliseconds(axes)
    panels[0, 0].set_ylabel("token latency (s),\nwindow as planned")
    panels[1, 0].set_ylabel(f"token latency (s),\n{_middle_ms(rows):g} ms a hop")
    panels[2, 0].set_ylabel("TTFT (s),\nwindow as planned")
    _legend(figure, panels[0, 0], systems, styles)
    figure.suptitle(_title(rows), fontsize=7.5)
    return figure


def _draw_lines(
    axes: Axes, good: pd.DataFrame, systems: list[str], styles: dict, column: str
) -> None:
    """Each system as its memory allows; dotted, with packed payloads."""
    planned = good[good.window == _planned(good)]
    for system in systems:
        for wire, style in (("auto", "-"), (_PACKED, ":")):
            line = planned[(planned.system_name == system) & (planned.wire == wire)]
            line = line.sort_values("link_latency_ms")
            if len(line) > (wire == _PACKED):
                name = system if wire == "auto" else f"{system}, 8 bits on the wire"
                axes.plot(
                    line.link_latency_ms,
                    line[column],
                    label=name,
                    **{**styles[system], "linestyle": style},
                )


def _draw_windows(axes: Axes, rows: pd.DataFrame, systems: list[str], styles: dict) -> None:
    """A group a window, a point a system, its limit across it; what does not fit is named."""
    windows = [name for name in _WINDOWS.values() if name in set(rows.window)]
    width = 0.8 / len(systems)
    for window, own in rows[rows.wire == "auto"].groupby("window"):
        place = windows.index(str(window))
        words: dict[str, Any] = {"y": 0.03, "ha": "center", "fontsize": 6}
        words["transform"] = axes.get_xaxis_transform()
        if len(own) > 1 and (own.status == "oom").all():
            axes.text(place, s="none\nfits", **words)
            continue
        for row in own.drop_duplicates("system_name").itertuples():
            at = place + (systems.index(str(row.system_name)) + 0.5) * width - 0.4
            if row.status == "ok":
                axes.plot(at, row.token_latency_s, **styles[str(row.system_name)])
                axes.plot(at, row.limit_token_s, marker="_", **looks.LIMIT_TICK)
            else:
                why = "does not fit" if row.status == "oom" else str(row.status)
                axes.text(at, s=why, rotation=90, **words)
    axes.set_xticks(range(len(windows)), windows, fontsize=6)
    axes.set_xlim(-0.5, len(windows) - 0.5)
    axes.grid(False, axis="x")


def _mark_paper(above: Axes, below: Axes, *, is_its_precision: bool) -> None:
    for axes in (above, below):
        axes.axhline(PAPER_TOKEN_S, color="k", linestyle="-.", linewidth=0.6)
    if is_its_precision:
        above.plot(PAPER_LINK_MS, PAPER_TOKEN_S, **looks.PAPER)


def _legend(figure: Figure, axes: Axes, systems: list[str], styles: dict) -> None:
    handles = [axes.plot([], [], label=system, **styles[system])[0] for system in systems]
    handles += axes.plot([], [], ":", color="0.4", label="8 bits on the wire")
    handles += axes.plot([], [], marker="_", **looks.LIMIT_TICK, label="physical limit")
    paper = {**looks.PAPER, "linestyle": "-.", "linewidth": 0.6}
    handles += axes.plot([], [], **paper, label="the paper's, fp32, window 2, star")
    figure.legend(handles=handles, ncol=4, loc="outside lower center", frameon=False)


def _title(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    network = f"{first.topology} topology, {first.bandwidth_mbps:g} Mbit/s"
    model, devices = names.model_name(first.model), names.device_name(first.device)
    prompt = f"prompt of {first.prompt_tokens:.0f}; " if "prompt_tokens" in rows else ""
    return f"{model} on {devices}, {network}; {prompt}virtual time"


def _planned(rows: pd.DataFrame) -> str:
    """The window that lines are drawn of."""
    return _WINDOWS["auto"] if (rows.window == _WINDOWS["auto"]).any() else rows.window.iloc[0]


def _middle_ms(rows: pd.DataFrame) -> float:
    """The latency of bars and findings: that of most points, as the paper's."""
    return float(rows.link_latency_ms.mode().iloc[-1])


def _largest_limit(row: Any) -> str:
    """Which of the three takes most."""
    limits = {name: row[column] for column, name in _LIMITS.items() if row[column] == row[column]}
    return max(limits, key=limits.__getitem__) if limits else "-"


def _way(row: Any) -> str:
    packed = f", {row.wire} on the wire" if row.wire != "auto" else ""
    return f"{row.system_name}, {row.window}{packed}"


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows, if any succeeded, with the names that tell them apart.

    `precision`, `system_name` (without window and wire), `window` and `wire`.
    """
    rows = runs.copy() if len(succeeded(runs)) else runs[:0].copy()
    rows["precision"] = [names.precision_name(held) for held in rows.weights]
    rows["system_name"] = rows.label
    window = rows.system_window.replace({"False": "off", "None": "off"})
    rows["window"] = window.map(lambda name: _WINDOWS.get(name, f"window {name}"))
    rows["wire"] = rows.system_wire.fillna("auto")
    return rows


DRAWING = Drawing(
    name="fig_precision",
    rows=_rows,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
