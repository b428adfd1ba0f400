"""Every system on one model, in memory and under a cap: the paper's figure 6 and more.

Claims it holds against numbers: 80 % less TTFT and token latency than Accelerate, 90 % less than
Transformers and Galaxy (claim 2 of TPI-LLM); doubts: why not compare with llama.cpp on one device,
and how far is each system from its physical limit. Run it with `python -m tpi_bench
+experiment=fig_comparison`; draw it again with `python -m experiments.fig_comparison FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tpi_bench.report import figures, names
from tpi_bench.report.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Column, what it is called, and the unit's size.
_PANELS = (
    ("token_latency_s", "token latency (ms)", 1e-3),
    ("ttft_s", "TTFT (ms)", 1e-3),
    ("memory_bytes", "peak memory of a device (GB)", 1e9),
)


def table(rows: pd.DataFrame) -> str:
    """A line a system and cap: medians with the range, and the reason where there is no number."""
    lines = []
    for (memory, label), group in rows.groupby(["memory", "line"], sort=False):
        good = group[group.status == "ok"]
        line = {"memory": memory, "system": label}
        if good.empty:
            lines.append(line | {"token ms [min, max]": group.status.iloc[-1]})
            continue
        token = good.token_latency_s * 1e3
        lines.append(
            line
            | {
                "token ms [min, max]": figures.median_and_range(token, "{:.0f}"),
                "limit ms": f"{good.limit_token_s.median() * 1e3:.0f}",
                "x limit": f"{(good.token_latency_s / good.limit_token_s).median():.2f}",
                "TTFT ms": f"{good.ttft_s.median() * 1e3:.0f}",
                "anon GB": f"{good.peak_anon_bytes.max() / 1e9:.2f}",
                "mapped GB": f"{good.peak_file_bytes.max() / 1e9:.2f}",
                "cgroup GB": f"{good.peak_cgroup_bytes.max() / 1e9:.2f}",
                "repeats": str(good.repeat.nunique()),
            }
        )
    import pandas as pd

    text = pd.DataFrame(lines).fillna("-").to_string(index=False)
    return "\n".join([text, *_against_real(rows)])


def _against_real(rows: pd.DataFrame) -> list[str]:
    """How far the engine's own ways of getting weights are from the libraries that they follow."""
    lines = []
    for ours, real in (("blocking", "accelerate"), ("mmap", "llamacpp")):
        for memory, group in rows[rows.status == "ok"].groupby("memory", sort=False):
            alone = group[group.num_devices == 1]
            a = alone.loc[alone.system == ours, "token_latency_s"].median()
            b = alone.loc[alone.system == real, "token_latency_s"].median()
            if a == a and b == b:
                lines.append(
                    f"{ours} takes {a / b:.2f} times the token latency of {real} ({memory})"
                )
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """Bars of medians with the range; a line across a bar is that system's physical limit."""
    labels = list(dict.fromkeys(rows.line))
    caps = list(dict.fromkeys(rows.memory))
    colours = figures.palette(caps)
    figure = figures.new_figure(0.6 + 0.24 * len(labels), num_columns=2)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    places = np.arange(len(labels))[::-1]
    height = 0.8 / len(caps)
    for axes, (column, name, unit) in zip(panels, _PANELS, strict=True):
        for number, cap in enumerate(caps):
            own = rows[rows.memory == cap]
            at = places + (len(caps) - 1 - 2 * number) * height / 2
            _bars(axes, own, labels, at, height, column, unit, colours[cap])
        axes.set_xlabel(name)
        axes.grid(False, axis="y")
        if column != "memory_bytes":
            axes.set_xscale("log")
            figures.plain_numbers(axes.xaxis)
    panels[0].set_yticks(places, labels)
    shared = ", sharing cores" if rows.devices_share_cores.fillna(False).any() else ""
    figure.suptitle(f"{rows.model.iloc[0]}, {rows.dtype.iloc[0]}, measured{shared}", fontsize=7.5)
    handles = [panels[0].barh([0], [np.nan], color=colours[cap], label=cap) for cap in caps]
    (limit,) = panels[0].plot([], [], color="k", linewidth=1.2, label="physical limit")
    figure.legend(handles=[*handles, limit], ncol=4, loc="outside lower center", frameon=False)
    return figure


def _bars(
    axes: Axes,
    rows: pd.DataFrame,
    labels: list[str],
    at: np.ndarray,
    height: float,
    column: str,
    unit: float,
    colour: tuple,
) -> None:
    for label, place in zip(labels, at, strict=True):
        group = rows[rows.line == label]
        good = group[group.status == "ok"]
        if good.empty:
            if not group.empty:
                axes.text(
                    0.02,
                    place,
                    str(group.status.iloc[-1]),
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=5.5,
                    color="0.3",
                )
            continue
        values = good[column] / unit
        middle = values.median()
        spread = [[middle - values.min()], [values.max() - middle]]
        error = {"linewidth": 0.6, "ecolor": "0.25"}
        axes.barh(place, middle, height, color=colour, xerr=spread, error_kw=error, linewidth=0)
        if column == "token_latency_s":
            limit = good.limit_token_s.median() / unit
            axes.plot([limit] * 2, [place - height / 2, place + height / 2], color="k", lw=1.2)


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows, if any is ok, with `line`, `memory` (the cap) and `memory_bytes`.

    That is what the device's group was charged, page cache included; without groups, anonymous and
    mapped pages.
    """
    if not (runs.status == "ok").any():
        return runs[:0]
    rows = runs.copy()
    rows["line"] = [
        names.system_name(row) + (f", {row['num_devices']} devices" * (row["num_devices"] > 1))
        for row in rows.to_dict("records")
    ]
    rows["memory"] = [
        f"{cap / 1e3:g} GB a device" if cap == cap else "all memory" for cap in rows.memory_mb
    ]
    seen = rows.peak_anon_bytes + rows.peak_file_bytes.fillna(0)
    rows["memory_bytes"] = rows.peak_cgroup_bytes.fillna(seen)
    order = {label: i for i, label in enumerate(dict.fromkeys(rows.line))}
    rows["order"] = rows.line.map(order)
    return rows.sort_values(
        ["num_devices", "order", "memory_mb"], na_position="first", kind="stable"
    )


DRAWING = Drawing(
    name="fig_comparison",
    rows=_rows,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
