"""Every system on one model by precision, in memory and under caps: the paper's figure 6 and more.

Claims it holds against numbers: 80 % less TTFT and token latency than Accelerate, 90 % less than
Transformers and Galaxy (claim 2 of TPI-LLM); doubts: why not compare with llama.cpp on one device,
what is left of the difference at other precisions, and how far is each system from its physical
limit. Run it with `python -m tpi_bench +experiment=fig_comparison`; draw it again with `python -m
experiments.fig_comparison FOLDER`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "q8": "q8", "q4": "q4"}
_UNCAPPED = "all memory"
_WHY = {"oom": "does not fit", "timeout": "took too long", "error": "failed"}
# Systems that are held against each other: ours, theirs, and why.
_PAIRS = (
    ("TPI star", "Accelerate", "this engine, planned for its memory"),
    ("TPI star", "llama.cpp", "this engine, planned for its memory"),
    ("TPI star", "llama.cpp Q4_0", "this engine, planned for its memory"),
    ("faulted", "Accelerate", "stands for it in virtual time"),
    ("blocking", "Accelerate", "the same without page faults"),
    ("mmap", "llama.cpp", "stands for it in virtual time"),
)


def table(rows: pd.DataFrame) -> str:
    """A line a precision, memory and system; then who is fastest where, and ratios of pairs."""
    import pandas as pd

    groups = rows.groupby(["precision", "memory", "line"], sort=False)
    lines = [_line(precision, memory, label, group) for (precision, memory, label), group in groups]
    text = pd.DataFrame(lines).fillna("-").to_string(index=False)
    return "\n".join([text, *_what_to_run(rows), *_against_real(rows)])


def _line(precision: str, memory: str, label: str, group: pd.DataFrame) -> dict[str, str]:
    """Medians with the range, or the status where there is no number."""
    good = group[group.status == "ok"]
    names_it = {"weights": precision, "memory": memory, "system": label}
    if good.empty:
        return names_it | {"token ms [min, max]": group.status.iloc[-1]}
    return names_it | {
        "token ms [min, max]": figures.median_and_range(good.token_latency_s * 1e3, "{:.0f}"),
        "limit ms": f"{good.limit_token_s.median() * 1e3:.0f}",
        "x limit": f"{(good.token_latency_s / good.limit_token_s).median():.2f}",
        "TTFT ms": f"{good.ttft_s.median() * 1e3:.0f}",
        "anon GB": f"{good.peak_anon_bytes.max() / 1e9:.2f}",
        "mapped GB": f"{good.peak_file_bytes.max() / 1e9:.2f}",
        "cgroup GB": f"{good.peak_cgroup_bytes.max() / 1e9:.2f}",
        "repeats": str(good.repeat.nunique()),
    }


def _what_to_run(rows: pd.DataFrame) -> Iterator[str]:
    """The fastest on one device, for each memory and precision."""
    alone = rows[(rows.status == "ok") & (rows.num_devices == 1)]
    for memory, here in alone.groupby("memory", sort=False):
        words = []
        for precision, group in here.groupby("precision", sort=False):
            times = group.groupby("line").token_latency_s.median().sort_values()
            second = f", then {times.index[1]} {times.iloc[1] * 1e3:.0f}" if len(times) > 1 else ""
            words.append(f"{precision} {times.index[0]} {times.iloc[0] * 1e3:.0f} ms{second}")
        yield f"fastest with {memory}: {'; '.join(words)}"


def _against_real(rows: pd.DataFrame) -> Iterator[str]:
    """Ratios of pairs that ran in one repeat, with their range."""
    alone = rows[(rows.status == "ok") & (rows.num_devices == 1)]
    for ours, real, why in _PAIRS:
        for (memory, precision), group in alone.groupby(["memory", "precision"], sort=False):
            a, b = (
                group[group.line == name].groupby("repeat").token_latency_s.median()
                for name in (ours, real)
            )
            ratio = (a / b).dropna()
            if len(ratio):
                spread = figures.median_and_range(ratio, "{:.2f}")
                yield f"{ours} takes {spread} of {real}'s time, {precision}, {memory} ({why})"


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a precision: medians with the range, and before each its physical limit.

    Points and no bars: a logarithmic axis has no beginning.
    """
    labels = sorted(dict.fromkeys(rows.line), key=lambda label: " devices" in label)
    caps = list(dict.fromkeys(rows.sort_values("memory_mb", ascending=False).memory))
    caps = sorted(caps, key=lambda cap: cap != _UNCAPPED)
    precisions = list(dict.fromkeys(rows.precision))
    colours = looks.shades(caps)
    figure = figures.new_figure(0.9 + 0.28 * len(labels), num_columns=2)
    panels = figure.subplots(1, len(precisions), sharey=True, sharex=True, squeeze=False)[0]
    places = np.arange(len(labels))[::-1]
    height = 0.8 / len(caps)
    for axes, precision in zip(panels, precisions, strict=True):
        for number, (cap, marker) in enumerate(figures.with_markers(caps)):
            own = rows[(rows.memory == cap) & (rows.precision == precision)]
            at = places + (len(caps) - 1 - 2 * number) * height / 2
            _points(axes, own, dict(zip(labels, at, strict=True)), marker, colours[cap])
        for edge in places[1:]:
            axes.axhline(edge + 0.5, color="0.9", linewidth=0.5)
        axes.set_title(precision, fontsize=7.5)
        axes.set_xlabel("token latency (ms)", fontsize=6.5)
        axes.grid(False, axis="y")
    panels[0].set_xscale("log")
    if (rows.status != "ok").any():
        panels[0].set_xlim(left=panels[0].get_xlim()[0] / 5)  # for the words why
    figures.plain_numbers(panels[0].xaxis)
    for axes in panels:
        axes.tick_params(axis="x", labelrotation=90, labelsize=6)
    panels[0].set_yticks(places, labels)
    panels[0].set_ylim(-0.5, len(labels) - 0.5)  # also where a system has points at one cap alone
    sharing = rows[rows.devices_share_cores.eq(True)].num_devices
    shared = f" ({sharing.max():.0f} devices share cores)" if len(sharing) else ""
    model = names.model_name(rows.model.iloc[0])
    figure.suptitle(f"{model}, measured{shared}, by weights", fontsize=7.5)
    handles = [
        panels[0].plot([], [], marker, color=colours[cap], label=cap)[0]
        for cap, marker in figures.with_markers(caps)
    ]
    handles += panels[0].plot([], [], "|", color="k", label="physical limit of each")
    figure.legend(handles=handles, ncol=5, loc="outside lower center", frameon=False)
    return figure


def _points(
    axes: Axes, rows: pd.DataFrame, places: dict[str, float], marker: str, colour: tuple
) -> None:
    """One memory and precision; what did not run is named where its point would be."""
    for label, group in rows.groupby("line", sort=False):
        place, good = places[str(label)], group[group.status == "ok"]
        if good.empty:
            axes.text(
                0.02,
                place,
                _WHY.get(status := str(group.status.iloc[-1]), status),
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=6,
                color=colour,
            )
            continue
        values, limit = good.token_latency_s * 1e3, good.limit_token_s.median() * 1e3
        middle = values.median()
        spread = [[middle - values.min()], [values.max() - middle]]
        axes.plot([limit, middle], [place, place], color=colour, linewidth=0.6, alpha=0.6)
        axes.errorbar(middle, place, xerr=spread, fmt=marker, color=colour, markersize=3)
        axes.plot(limit, place, "|", color="k", markersize=4)


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows, if any is ok, with `precision`, `line` (the system) and `memory` (the cap).

    What is planned for its memory is one line with what holds everything where nothing is capped.
    """
    if not (runs.status == "ok").any():
        return runs[:0]
    rows = runs.copy()
    rows["precision"] = rows.weights.map(lambda held: _PRECISIONS.get(held, held))
    rows["line"] = [_line_name(row) for row in rows.to_dict("records")]
    rows["memory"] = [
        f"{cap / 1e3:g} GB a device" if cap == cap else _UNCAPPED for cap in rows.memory_mb
    ]
    lines = {label: i for i, label in enumerate(dict.fromkeys(rows.line))}
    rows["order"] = rows.weights.map({weights: i for i, weights in enumerate(_PRECISIONS)})
    rows["line_order"] = rows.line.map(lines)
    keys, rising = ["order", "memory_mb", "num_devices", "line_order"], [True, False, True, True]
    rows = rows.sort_values(keys, ascending=rising, na_position="first", kind="stable")
    return rows.drop(columns=["order", "line_order"])


def _line_name(row: dict[str, Any]) -> str:
    """A system and its devices; where memory is short and nothing is planned, that is its own."""
    name = names.system_name(row)
    is_capped = row["memory_mb"] == row["memory_mb"]
    if row["system"] == "tpi" and row["num_devices"] > 1 and name == row["label"] and is_capped:
        name = f"{name}, equal shares"
    name = name.replace(" window auto", "")
    return f"{name}, {row['num_devices']} devices" if row["num_devices"] > 1 else name


DRAWING = Drawing(
    name="fig_comparison",
    rows=_rows,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
