"""Where does a token's time go in tensor and in layer-wise parallelism, and what memory does either
take? Figure 1 of TPI-LLM (arXiv 2410.00531), with its numbers beside.

Shares of a token, the mean of the devices, from spans (`experiments/breakdown.py`): computing,
waiting for their disks, waiting for others that do, and the links, in which nobody works and
messages are on their way. The paper says 70 % communication for tensor parallelism and 2 % for
layer-wise, of Llama 3.1-8B on four laptops; how it held 32 GB of weights there it does not say.
Memory stands beside its tables 2 and 6. Run it with `python -m tpi_bench
+experiment=fig_breakdown`; draw it again with `python -m experiments.fig_breakdown FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.breakdown import PARTS, with_parts
from experiments.tab_memory import paper_memory
from tpi_bench.report import figures, looks, names
from tpi_bench.report.advice_text import seconds_text
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_LINKS = {"TPI star": 0.70, "pipeline": 0.02}  # its figure 1, everything held
_WORDS = {
    "links": "links: messages travel, nobody works",
    "compute": "computes",
    "loads": "waits for its disk",
    "waits": "waits for devices that compute or load",
    "other": "between spans",
}


def table(rows: pd.DataFrame) -> str:
    """A line a setting and system: its token by parts, beside the paper's; then memory."""
    import pandas as pd

    cells = []
    for (setting, line), own in rows[rows.is_token].groupby(["setting", "line"], sort=False):
        shares = own[list(PARTS)].mean()
        paper = own.paper_links.iloc[0]
        cells.append(
            {
                "setting": setting,
                "system": line,
                "token ms": figures.median_and_range(own.token_latency_s * 1e3, "{:.4g}")
                if len(own) > 1
                else f"{own.token_latency_s.iloc[0] * 1e3:.4g}",
                **{part: f"{shares[part]:.0%}" for part in PARTS},
                "paper's links": "-" if paper != paper else f"{paper:.0%}",
                "GB held": f"{own.ledger_bytes.max() / 1e9:.2f}",
            }
        )
    text = [pd.DataFrame(cells).to_string(index=False)] if cells else []
    return "\n".join([*text, *_memory_text(rows[~rows.is_token])])


def _memory_text(rows: pd.DataFrame) -> list[str]:
    lines = []
    for (clock, model), own in rows.groupby(["clock", "model"], sort=False):
        shown = own.pivot_table(index="line", columns="num_devices", values="held_gb", sort=False)
        what = "the ledger" if clock == "virtual" else "anonymous pages, Python and torch too"
        lines += [f"GB of the fullest device of {model} ({what}), by devices"]
        lines += [shown.to_string(float_format="{:.2f}".format, na_rep="-")]
        paper = own[own.paper_gb.notna()]
        for line, group in paper.sort_values("num_devices").groupby("line", sort=False):
            found = ", ".join(
                f"{row.num_devices:.0f} {row.paper_gb:.1f}" for row in group.itertuples()
            )
            lines.append(f"  the paper's, {line}: {found}")
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """Left, tokens by parts, a bar a system; right, memory against devices. Virtual, measured."""
    tokens, memory = rows[rows.is_token], rows[~rows.is_token]
    settings = list(dict.fromkeys(tokens.setting))
    counts = [tokens[tokens.setting == setting].line.nunique() for setting in settings]
    clocks = list(dict.fromkeys(memory.clock))
    figure = figures.new_figure(1.5 + 0.21 * sum(counts) + 0.3 * len(counts), num_columns=2)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[5, 3])[0]
    if settings:
        panels = left.subplots(len(settings), 1, squeeze=False, height_ratios=counts)[:, 0]
        for axes, setting in zip(panels, settings, strict=True):
            _draw_parts(axes, tokens[tokens.setting == setting])
            axes.set_title(setting, fontsize=6.5)
            axes.tick_params(axis="x", labelbottom=bool(axes is panels[-1]))
        panels[-1].set_xlabel("share of a token, mean of the devices")
        handles = [figures.patch(looks.TIMES[part], _WORDS[part]) for part in PARTS]
        if tokens.paper_links.notna().any():
            handles += panels[0].plot([], [], **looks.PAPER, label="end of links, the paper's")
        left.legend(handles=handles, loc="outside lower center", ncol=2, frameon=False)
    if clocks:
        panels = right.subplots(len(clocks), 1, squeeze=False)[:, 0]
        for axes, clock in zip(panels, clocks, strict=True):
            _draw_memory(axes, memory[memory.clock == clock])
        panels[-1].set_xlabel("devices")
        right.legend(*figures.handles_of(panels), loc="outside lower center", ncol=2, frameon=False)
    return figure


def _draw_parts(axes: Axes, rows: pd.DataFrame) -> None:
    lines = list(dict.fromkeys(rows.line))
    places = np.arange(len(lines))[::-1]
    for place, line in zip(places, lines, strict=True):
        own = rows[rows.line == line]
        start = 0.0
        for part, share in own[list(PARTS)].mean().items():
            axes.barh(place, share, 0.7, left=start, color=looks.TIMES[str(part)], linewidth=0)
            start += share
        paper = own.paper_links.iloc[0]
        if paper == paper:
            axes.plot(paper, place, **looks.PAPER)
        seconds = own.token_latency_s.median()
        axes.text(1.01, place, seconds_text(seconds), va="center", fontsize=6)
    axes.set_yticks(places, lines, fontsize=6.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(False, axis="y")


def _draw_memory(axes: Axes, rows: pd.DataFrame) -> None:
    styles = looks.line_styles(list(rows.line))
    for line, own in rows.sort_values("num_devices").groupby("line", sort=False):
        axes.plot(own.num_devices, own.held_gb, label=str(line), **styles[str(line)])
    paper = rows[rows.paper_gb.notna()]
    if len(paper):
        axes.plot(paper.num_devices, paper.paper_gb, **looks.PAPER, label="the paper's")
    axes.set_xticks(sorted(rows.num_devices.unique()))
    axes.set_ylim(bottom=0)
    first = rows.iloc[0]
    what = "ledger" if first.clock == "virtual" else "with Python and torch"
    axes.set_title(f"{names.model_name(first.model)}, {_CLOCKS[first.clock]}", fontsize=6.5)
    axes.set_ylabel(f"GB of the fullest device\n({what})", fontsize=6.5)


_CLOCKS = {"virtual": "virtual time", "wall": "measured"}


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """With `setting` and `line`, and beside tokens with parts and memory the paper's."""
    rows = succeeded(runs)
    cells = rows.to_dict("records")
    rows["line"] = [names.system_name(row) for row in cells]
    rows["is_token"] = rows.links.notna()
    rows["setting"] = [_setting(row) for row in cells]
    # The paper's is of the laptops with everything held.
    is_papers = (rows.clock == "virtual") & (rows.model == "llama3.1_8b") & rows.is_token
    rows["paper_links"] = rows.line.map(PAPER_LINKS).where(is_papers)
    rows["held_gb"] = rows.ledger_bytes.where(rows.clock == "virtual", rows.peak_anon_bytes) / 1e9
    rows["window"] = rows.system_window.replace({"False": "off", "None": "off"})
    order = {label: number for number, label in enumerate(looks.SYSTEMS)}
    rows["place"] = rows.label.map(order).fillna(len(order))
    keys = ["model", "window", "num_devices"]
    rows = rows.merge(paper_memory(), on=keys, how="left")
    rows["is_wall"] = rows.clock == "wall"
    keys = ["is_wall", "link_latency_ms", "variant", "place", "num_devices", "repeat"]
    rows = rows.sort_values(keys, kind="stable")
    is_papers = (rows.clock == "virtual") & (rows.system == "tpi") & ~rows.is_token
    rows["paper_gb"] = rows.paper_gb.where(is_papers)
    return rows


def _setting(row: dict[str, Any]) -> str:
    links = f"{row['link_latency_ms']:g} ms a hop, {row['bandwidth_mbps']:g} Mbit/s"
    model = names.model_name(row["model"])
    if row["clock"] == "virtual":
        return f"{model}, four laptops, Wi-Fi, {links}; virtual time"
    return f"{model}, {row['num_devices']:.0f} devices, {links}; measured"


DRAWING = Drawing(name="fig_breakdown", rows=_rows, table=table, draw=draw, of_spans=with_parts)

if __name__ == "__main__":
    DRAWING.again()
