"""Llama 2-70B on many devices, in virtual time: token latency against devices, cores, bandwidth.

Claims it holds against numbers: one 70B model runs on 8 devices in 3.1 GB each (claim 1 of
TPI-LLM), more devices always help and more bandwidth hardly does (claim 7, its figure 5), and the
doubt where more devices stop helping. Run it with `python -m tpi_bench +experiment=fig_scaling`;
draw it again with `python -m experiments.fig_scaling FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Column, axis label, and the value that the other panels hold it at.
_AXES = {
    "num_devices": "devices",
    "cores_per_device": "cores a device",
    "bandwidth_mbps": "link bandwidth (Mbit/s)",
}


def table(rows: pd.DataFrame) -> str:
    """One line a point; what did not fit its devices' memory is there with its reason."""
    shown = rows.assign(
        **{
            "token s": rows.token_latency_s,
            "TTFT s": rows.ttft_s,
            "limit s": rows.limit_token_s,
            "GB a device": rows.ledger_bytes / 1e9,
        }
    )
    columns = ["line", *_AXES, "TTFT s", "token s", "limit s", "GB a device", "status"]
    shown = shown.sort_values(["line", *_AXES])[columns].round(2)
    return shown.to_string(index=False, formatters=dict.fromkeys(_AXES, "{:g}".format))


def draw(rows: pd.DataFrame) -> Figure:
    """A column for each of what is varied, the others at their most frequent value; token latency
    above, TTFT below.
    """
    good = succeeded(rows)
    varied = [name for name in _AXES if good[name].nunique() > 1] or ["num_devices"]
    styles = looks.line_styles(list(good.line))
    figure = figures.new_figure(4.8, num_columns=2)
    panels = figure.subplots(2, len(varied), squeeze=False, sharey="row", sharex="col")
    for (above, below), name in zip(panels.T, varied, strict=True):
        own = good
        for other in _AXES:
            if other != name:
                own = own[own[other] == good[other].mode().iloc[0]]
        figures.log_values(above, own[name])
        for label, style in styles.items():
            line = own[own.line == label].sort_values(name).drop_duplicates(name)
            if len(line) > 1 or len(varied) == 1:  # what another column varies is no point here
                above.plot(line[name], line.token_latency_s, label=label, **style)
                limit = {**looks.LIMIT, "color": style["color"]}
                above.plot(line[name], line.limit_token_s, **limit)
                figures.name_on_line(above, line[name], line.token_latency_s, _variant(label))
                below.plot(line[name], line.ttft_s, label=label, **style)
        below.set_xlabel(_AXES[name])
    for (first, *_), words in zip(panels, ("token latency (s)", "TTFT (s)"), strict=True):
        figures.log_milliseconds(first)
        first.set_ylabel(words)
        first.set_ylim(bottom=first.get_ylim()[0] / 3)  # for what is said of hidden lines
    panels[0, 0].plot([], [], **looks.LIMIT, label="physical limit of each")
    handles = figures.handles_of(panels[0])
    figure.legend(*handles, loc="outside lower center", ncol=3, frameon=False)
    figure.suptitle(_title(good), fontsize=7.5)
    return figure


def _variant(label: str) -> str:
    """What sets a line apart from the system's first, which has a window of two in fp32."""
    *_, rest = label.partition(" window ")
    return rest.removeprefix("2").removeprefix("auto").removeprefix(", ")


def _title(good: pd.DataFrame) -> str:
    device = names.device_name(good.device.iloc[0]).partition(" of ")[2] or good.device.iloc[0]
    latency = good.link_latency_ms.mode().iloc[0]
    return (
        f"{names.model_name(good.model.iloc[0])} on {device}, {good.topology.iloc[0]} topology, "
        f"{latency:g} ms a hop, prompt of {good.prompt_tokens.iloc[0]:.0f}; virtual time"
    )


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows, if any succeeded, with the name of their `line`."""
    rows = runs if len(succeeded(runs)) else runs[:0]
    lines = [names.system_label(row) for row in rows.to_dict("records")]
    if rows.weights.nunique() > 1:
        lines = [
            line if held == "float32" else f"{line}, {held}"
            for line, held in zip(lines, rows.weights, strict=True)
        ]
    usual = rows.disk_bps.mode().max()
    lines = [
        line if bps == usual or bps != bps else f"{line}, {bps / 1e9:g} GB/s disk"
        for line, bps in zip(lines, rows.disk_bps, strict=True)
    ]
    return rows.assign(line=lines)


DRAWING = Drawing(
    name="fig_scaling",
    rows=_rows,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
