"""One device alone or several together, by model? Figure 6 of TPI-LLM (arXiv 2410.00531).

The paper shows there bars of its system, of one device alone, of layer-wise parallelism and of
Galaxy; its numbers in print are those of its table 1, with a window and without, which stand here
as crosses. Alone a device maps its files, as llama.cpp and a swapping library do, or plans its
memory; what does not fit is named. In virtual time on the paper's devices, in fp32 and in 4 bit,
and measured on this host. Run it with `python -m tpi_bench +experiment=fig_standalone`; draw it
again with `python -m experiments.fig_standalone FOLDER`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.tab_overview import paper_overview
from tpi_bench.report import figures, looks, names
from tpi_bench.report.advice_text import seconds_text
from tpi_bench.report.drawing import Drawing, succeeded
from tpi_bench.report.statistics import paired_ratio

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WINDOWS = {"off": "off", "2": "on"}  # the paper's scheduler


def table(rows: pd.DataFrame) -> str:
    """A line a panel, model and system; then the best alone beside the best together."""
    import pandas as pd

    groups = rows.groupby(["panel", "model", "line"], sort=False)
    lines = [_cells(panel, model, line, own) for (panel, model, line), own in groups]
    return "\n".join([pd.DataFrame(lines).fillna("-").to_string(index=False), *_findings(rows)])


def _cells(panel: str, model: str, line: str, own: pd.DataFrame) -> dict[str, str]:
    good, first = own[own.status == "ok"], own.iloc[0]
    cells = {"panel": panel, "model": names.model_name(model), "system": line}
    if good.empty:
        return cells | {"token": first.status}
    ms = figures.median_and_range(good.token_latency_s * 1e3, "{:.4g}")
    paper = first.paper_token_s
    return cells | {
        "token": ms + " ms" if len(good) > 1 else seconds_text(good.token_latency_s.iloc[0]),
        "limit": seconds_text(good.limit_token_s.median()),
        "TTFT": seconds_text(good.ttft_s.median()),
        "GB a device": f"{good.held_gb.max():.2f}".replace("nan", "-"),
        "paper's token": "-" if paper != paper else f"{paper:g} s",
    }


def _findings(rows: pd.DataFrame) -> Iterator[str]:
    """How much is won by being together, model by model, and against which of the paper's bars."""
    good = rows[rows.status == "ok"]
    for (panel, model), own in good.groupby(["panel", "model"], sort=False):
        times = own.groupby("line", sort=False).token_latency_s.median()
        alone = times[[line for line in times.index if line.endswith("alone")]]
        together = times.drop(alone.index)
        if alone.empty or together.empty:
            continue
        best, other = str(together.idxmin()), str(alone.idxmin())
        a, b = (own[own.line == line].set_index("repeat").token_latency_s for line in (best, other))
        ratio = paired_ratio(a, b)
        yield (
            f"{panel}, {names.model_name(model)}: fastest together {best} "
            f"{seconds_text(together.min())}, alone {other} "
            f"{seconds_text(alone.min())} (ratio {ratio.text('{:.2f}')})"
        )


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a precision in virtual time, one measured; a model's systems side by side."""
    panels = list(dict.fromkeys(rows.panel))
    lines = list(dict.fromkeys(rows.line))
    styles = looks.point_styles(lines)
    figure = figures.new_figure(0.9 + 1.75 * len(panels), num_columns=2)
    drawn = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, panel in zip(drawn, panels, strict=True):
        own = rows[rows.panel == panel]
        _draw_models(axes, own, [line for line in lines if line in set(own.line)], styles)
        axes.set_title(own.title.iloc[0], fontsize=7)
        axes.set_ylabel("token latency (s)")
    handles = [drawn[0].plot([], [], label=line, **styles[line])[0] for line in lines]
    handles += drawn[0].plot([], [], marker="_", **looks.LIMIT_TICK, label="physical limit")
    if rows.paper_token_s.notna().any():
        handles += drawn[0].plot([], [], **looks.PAPER, label="the paper's table 1")
    figure.legend(handles=handles, loc="outside lower center", ncol=4, frameon=False)
    return figure


def _draw_models(
    axes: Axes, rows: pd.DataFrame, lines: list[str], styles: dict[str, dict[str, Any]]
) -> None:
    models = list(dict.fromkeys(rows.model))
    width = 0.86 / len(lines)
    for (model, line), own in rows.groupby(["model", "line"], sort=False):
        at = models.index(str(model)) + (lines.index(str(line)) - (len(lines) - 1) / 2) * width
        good = own[own.status == "ok"]
        if good.empty:
            place = axes.get_xaxis_transform()
            why = "does not fit" if own.status.iloc[0] == "oom" else str(own.status.iloc[0])
            axes.text(at, 0.1, why, rotation=90, ha="center", fontsize=6, transform=place)
            axes.plot(at, 0.05, transform=place, **styles[str(line)])
            continue
        times = good.token_latency_s
        spread = [[times.median() - times.min()], [times.max() - times.median()]]
        axes.errorbar(at, times.median(), spread, elinewidth=0.7, **styles[str(line)])
        axes.plot(at, good.limit_token_s.median(), marker="_", **looks.LIMIT_TICK)
        paper = own.paper_token_s.iloc[0]
        if paper == paper:
            axes.plot(at, paper, **looks.PAPER)
    for edge in range(1, len(models)):
        axes.axvline(edge - 0.5, color="0.85", linewidth=0.6)
    axes.set_xticks(np.arange(len(models)), [names.model_name(model) for model in models])
    axes.set_xlim(-0.5, len(models) - 0.5)
    figures.log_milliseconds(axes)
    low, high = axes.get_ylim()
    if (rows.status != "ok").any():
        axes.set_ylim(low / (high / low) ** 0.4, high)  # for what does not fit
    axes.grid(False, axis="x")


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows, if any succeeded, with `panel`, `line`, `held_gb` and the paper's token latency."""
    rows = (runs if len(succeeded(runs)) else runs[:0]).copy()
    cells = rows.to_dict("records")
    rows["line"] = [_line(row) for row in cells]
    rows["title"] = [_title(row) for row in cells]
    rows["panel"] = [_panel(row) for row in cells]
    held = rows.ledger_bytes.where(rows.system != "mmap")  # which does not count mapped files
    rows["held_gb"] = held.where(rows.clock == "virtual", rows.peak_anon_bytes) / 1e9
    window = rows.system_window.replace({"False": "off", "None": "off"})
    rows["scheduler"] = window.map(_WINDOWS)
    rows["place"] = range(len(rows))
    rows = rows.merge(paper_overview(), on=["model", "scheduler"], how="left")
    rows["is_together"] = rows.num_devices > 1
    rows["size"] = rows.groupby("model").limit_memory_s.transform("max")
    rows["panel_place"] = rows.panel.map({"virtual fp32": 0, "virtual q4": 1}).fillna(2)
    rows = rows.sort_values(["panel_place", "size", "is_together", "place"], kind="stable")
    is_papers = (
        (rows.clock == "virtual")
        & (rows.weights == "float32")
        & (rows.num_devices == 8)
        & (rows.label == "TPI star")
    )
    rows["paper_token_s"] = rows.paper_token_s.where(is_papers)
    return rows


def _line(row: dict[str, Any]) -> str:
    name = names.system_name(row)
    return f"{name}, alone" if row["num_devices"] == 1 else name


def _panel(row: dict[str, Any]) -> str:
    if row["clock"] == "virtual":
        return f"virtual {names.precision_name(row['weights'])}"
    return "measured"


def _title(row: dict[str, Any]) -> str:
    weights = names.precision_name(row["weights"])
    if row["clock"] == "virtual":
        links = f"{row['link_latency_ms']:g} ms a hop, {row['bandwidth_mbps']:g} Mbit/s"
        return f"{weights}: one of the paper's devices, or eight, {links}; virtual time"
    return (
        "measured on this host, one device of two cores or two of a core each: SmolLM2 in fp32, "
        "TinyLlama in q4 and 600 MB"
    )


DRAWING = Drawing(name="fig_standalone", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
