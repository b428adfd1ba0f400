"""The paper's tables 2 and 6 (TPI-LLM): the peak memory of a device, with a window and without.

Claim 1 (a 70B model in 3.1 GB a device) and Proposition 5 against numbers. Ours is the ledger in
virtual time: weights, KV cache, activations and buffers, by the byte; the paper's is a process,
with its interpreter and libraries, in units of 2^30 bytes: half of Llama 2-70B are 139e9 bytes of
weights, which its 130 "GB" on two devices could not hold else. Run it with `python -m tpi_bench
+experiment=tab_memory`; draw it again with `python -m experiments.tab_memory FOLDER`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PAPER_ROWS = Path(__file__).parent / "paper" / "table2_table6_memory.csv"
PAPER_UNIT_GB = 2**30 / 1e9


_FACES = ("0.25", "0.65", "white")  # of markers, one a window


def table(rows: pd.DataFrame) -> str:
    """A line a model and window, ours / the paper's GB for each number of devices."""
    import pandas as pd

    lines = []
    for (model, window), group in rows.groupby(["model", "window"], sort=False):
        line = {"model": model, "window": window}
        for row in group.sort_values("num_devices").itertuples():
            held = f"{row.held_gb:.1f}" if row.status == "ok" else row.status
            paper = f"{row.paper_gb:.1f}" if row.paper_gb == row.paper_gb else "-"
            line[f"{row.num_devices} devices"] = f"{held} / {paper}"
        lines.append(line)
    text = pd.DataFrame(lines).fillna("-").to_string(index=False)
    return "\n".join(["GB of the fullest device, ours / the paper's", text, *_findings(rows)])


def _findings(rows: pd.DataFrame) -> list[str]:
    """By window: how ours compares with the paper's, in all and model by model."""
    lines = []
    good = rows[(rows.status == "ok") & rows.paper_gb.notna()]
    for window, group in good.groupby("window", sort=False):
        ratio, more = group.held_gb / group.paper_gb, group.paper_gb - group.held_gb
        lines.append(
            f"window {window}: ours is {figures.median_and_range(ratio, '{:.2f}')} of the paper's; "
            f"the paper has {figures.median_and_range(more, '{:.1f}')} GB more"
        )
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """Ours against the paper's, and against devices; the line is where they agree."""
    figure = figures.new_figure(2.8, num_columns=2)
    left, right = figure.subplots(1, 2)
    good = rows[rows.status == "ok"]
    windows = list(dict.fromkeys(good.window))
    largest = good.groupby("model").held_gb.max().sort_values()
    models = [str(model) for model in largest.index]
    for number, (window, marker) in enumerate(figures.with_markers(windows)):
        own = good[(good.window == window) & good.paper_gb.notna()]
        face = _FACES[number % len(_FACES)]
        style = {"color": "0.25", "markerfacecolor": face, "markersize": 3.5}
        left.plot(own.paper_gb, own.held_gb, marker, label=f"window {window}", **style)
    ends = [good.held_gb.min(), max(good.held_gb.max(), 1.0)]
    left.plot(ends, ends, color="0.3", linewidth=0.7, label="equal")
    left.set_xscale("log")
    left.set_yscale("log")
    for axis in (left.xaxis, left.yaxis):
        figures.plain_numbers(axis)
    left.set_xlabel("the paper's (GB a device)")
    left.set_ylabel("ours (GB a device)")
    left.legend(frameon=False)  # no colours of the models, which the right has: markers are alike
    colours = looks.shades(models)
    for model in models:
        for window, (_, marker) in zip(windows, figures.with_markers(windows), strict=True):
            own = good[(good.model == model) & (good.window == window)].sort_values("num_devices")
            label = names.model_name(model) if window == windows[0] else None
            right.plot(
                own.num_devices, own.held_gb, color=colours[model], marker=marker, label=label
            )
    right.set_yscale("log")
    figures.plain_numbers(right.yaxis)
    right.set_xticks(sorted(good.num_devices.unique()))
    right.set_xlabel("devices")
    right.set_ylabel("ours (GB a device)")
    figure.legend(*figures.handles_of([right]), loc="outside lower center", ncol=4, frameon=False)
    title = "TPI-LLM's tables 2 and 6, read as 2^30 bytes; ours: the ledger in virtual time"
    figure.suptitle(f"{title}\nmarkers in both: what the window is", fontsize=7.5)
    return figure


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows, if any is ok, with `window`, `held_gb` and the paper's `paper_gb`."""
    if not (runs.status == "ok").any():
        return runs[:0]
    rows = runs.copy()
    rows["window"] = rows.system_window.replace({"False": "off", "None": "off"})
    rows["held_gb"] = rows.ledger_bytes / 1e9
    return rows.merge(paper_memory(), on=["model", "window", "num_devices"], how="left")


def paper_memory() -> pd.DataFrame:
    """The paper's tables 2 and 6: `model`, `window`, `num_devices`, and `paper_gb` of 1e9 bytes."""
    import pandas as pd

    paper = pd.read_csv(PAPER_ROWS)
    paper["window"] = [
        "off" if scheduler == "off" else str(window)
        for scheduler, window in zip(paper.scheduler, paper.window, strict=True)
    ]
    paper = paper.melt(["model", "window"], ["n2", "n4", "n6", "n8"], "count", "paper_gb")
    paper["num_devices"] = paper["count"].str.removeprefix("n").astype(int)
    paper["paper_gb"] *= PAPER_UNIT_GB
    return paper.drop(columns="count")


DRAWING = Drawing(
    name="tab_memory",
    rows=_rows,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
