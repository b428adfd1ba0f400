"""How large should a window be, and is it the best use of its memory?

Sensitivity to the window's size, which TPI-LLM's reviewers asked for (it takes 2, 4 on laptops).
A window of n blocks is read ahead and given back; the same memory can keep blocks instead, so that
only the rest is read (`system.window=auto`). Both are drawn against the memory that a device holds
by the ledger, weights, caches and all, for two disk rates. Run it with `python -m tpi_bench
+experiment=fig_window`; draw it again with `python -m experiments.fig_window FOLDER`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_PLANNED, _ALL = "auto", "off"


def table(rows: pd.DataFrame) -> str:
    """A line a window: its memory and latency, and what planning would make of as much memory."""
    import pandas as pd

    cells = []
    for (model, disk), own in rows.groupby(["model", "disk_bps"], sort=False):
        planned = own[own.system_window == _PLANNED].sort_values("ledger_bytes")
        for row in own[own.system_window != _PLANNED].sort_values("ledger_bytes").itertuples():
            kept = _at(planned, row.ledger_bytes)
            cells.append(
                {
                    "model": model,
                    "disk GB/s": f"{disk / 1e9:g}",
                    "window": row.system_window,
                    "GB a device": f"{row.ledger_bytes / 1e9:.2f}",
                    "token s": f"{row.token_latency_s:.3g}",
                    "of its limit": f"{row.token_latency_s / row.limit_token_s:.2f}",
                    "planned for as much s": "-" if math.isnan(kept) else f"{kept:.3g}",
                    "planned / window": "-"
                    if math.isnan(kept)
                    else f"{kept / row.token_latency_s:.2f}",
                }
            )
    return pd.DataFrame(cells).to_string(index=False)


def _at(planned: pd.DataFrame, nbytes: float) -> float:
    """Latency at that memory, between the points there are; NaN outside of them."""
    memory = planned.ledger_bytes.to_numpy(dtype=float)
    latency = planned.token_latency_s.to_numpy(dtype=float)
    if not len(memory) or not memory[0] <= nbytes <= memory[-1]:
        return math.nan
    return float(np.interp(nbytes, memory, latency))


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a model: token latency against memory; numbers are sizes of windows."""
    models = list(dict.fromkeys(rows.model))
    disks = sorted(rows.disk_bps.unique())
    colours = looks.shades([f"{disk / 1e9:g} GB/s" for disk in disks])
    figure = figures.new_figure(2.7, num_columns=2)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for model, axes in zip(models, panels, strict=True):
        for disk in disks:
            own = rows[(rows.model == model) & (rows.disk_bps == disk)].sort_values("ledger_bytes")
            name = f"{disk / 1e9:g} GB/s"
            planned = own[own.system_window == _PLANNED]
            sizes = own[own.system_window != _PLANNED]
            axes.plot(
                planned.ledger_bytes / 1e9,
                planned.token_latency_s,
                color=colours[name],
                linestyle=":",
                marker="o",
                fillstyle="none",
                label=f"planned: kept and streamed, disk {name}",
            )
            windows = sizes[sizes.system_window != _ALL]
            axes.plot(
                windows.ledger_bytes / 1e9,
                windows.token_latency_s,
                color=colours[name],
                marker="o",
                label=f"window of so many blocks, disk {name}",
            )
            held = sizes[sizes.system_window == _ALL]
            axes.plot(held.ledger_bytes / 1e9, held.token_latency_s, "o", color=colours[name])
            for row in sizes.itertuples():
                size = "all" if row.system_window == _ALL else row.system_window
                axes.annotate(
                    size,
                    (row.ledger_bytes / 1e9, row.token_latency_s),
                    textcoords="offset points",
                    xytext=(0, 4),
                    ha="center",
                    fontsize=6,
                )
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        devices = rows[rows.model == model].num_devices.iloc[0]
        axes.set_title(f"{names.model_name(model)} on {devices:.0f} devices", fontsize=8)
        axes.set_xlabel("memory of the fullest device (GB)")
    panels[0].set_ylabel("token latency (s)")
    figure.legend(*figures.handles_of(panels), loc="outside lower center", ncol=2, frameon=False)
    return figure


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    return succeeded(runs)


DRAWING = Drawing(name="fig_window", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
