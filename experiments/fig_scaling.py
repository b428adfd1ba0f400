"""Llama 2-70B on many devices, in virtual time: token latency against devices, cores, bandwidth.

Claims it holds against numbers: one 70B model runs on 8 devices in 3.1 GB each (claim 1 of
TPI-LLM), more devices always help and more bandwidth hardly does (claim 7, its figure 5), and the
doubt where more devices stop helping. Run it with `python -m tpi_bench +experiment=fig_scaling`;
draw it again with `python -m experiments.fig_scaling FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench import figures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "fig_scaling"
# Column, axis label, and the value that the other panels hold it at.
_AXES = {
    "num_devices": "devices",
    "cores_per_device": "cores a device",
    "bandwidth_mbps": "link bandwidth (Mbit/s)",
}


def has_rows(runs: pd.DataFrame) -> bool:
    """Whether there is anything to draw."""
    return not _good(runs).empty


def table(runs: pd.DataFrame) -> str:
    """One line a point; what did not fit its devices' memory is there with its reason."""
    rows = runs.copy()
    rows["line"] = _labels(rows)
    rows["token s"] = rows.get("token_latency_s")
    rows["TTFT s"] = rows.get("ttft_s")
    rows["limit s"] = rows.get("limit_token_s")
    rows["GB a device"] = rows.ledger_bytes / 1e9 if "ledger_bytes" in rows else float("nan")
    columns = ["line", *_AXES, "TTFT s", "token s", "limit s", "GB a device", "status"]
    order = ["line", *_AXES]
    return rows.sort_values(order)[columns].round(2).to_string(index=False)


def draw(runs: pd.DataFrame) -> Figure:
    """A panel for each of what is varied, the others at their most frequent value."""
    good = _good(runs)
    varied = [name for name in _AXES if good[name].nunique() > 1] or ["num_devices"]
    labels = list(dict.fromkeys(good.line))
    colours = figures.palette(labels)
    figure = figures.new_figure(3.0, num_columns=2)
    panels = figure.subplots(1, len(varied), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, varied, strict=True):
        others = [other for other in _AXES if other != name]
        rows = good
        for other in others:
            rows = rows[rows[other] == good[other].mode().iloc[0]]
        for label, marker in figures.with_markers(labels):
            line = rows[rows.line == label].sort_values(name).drop_duplicates(name)
            _draw_line(axes, line, name, label, colours[label], marker)
        figures.log_values(axes, rows[name])
        axes.set_xlabel(_AXES[name])
    figures.log_milliseconds(panels[0])
    panels[0].set_ylabel("token latency (s)")
    panels[0].plot([], [], color="0.4", linestyle="--", linewidth=0.7, label="limit of each")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncol=4)
    figure.suptitle(_title(good), fontsize=7.5)
    return figure


def _draw_line(
    axes: Axes, line: pd.DataFrame, name: str, label: str, colour: object, marker: str
) -> None:
    axes.plot(line[name], line.token_latency_s, color=colour, marker=marker, label=label)
    axes.plot(line[name], line.limit_token_s, color=colour, linestyle="--", linewidth=0.7)


def _title(good: pd.DataFrame) -> str:
    device = str(good.device.iloc[0]).partition(" x ")[2] or str(good.device.iloc[0])
    latency = good.link_latency_ms.mode().iloc[0]
    return (
        f"{good.model.iloc[0]} on {device}, {good.topology.iloc[0]} topology, "
        f"{latency:g} ms a hop; virtual time, modelled cost"
    )


def _labels(rows: pd.DataFrame) -> list[str]:
    return [figures.system_label(row) for row in rows.to_dict("records")]


def _good(runs: pd.DataFrame) -> pd.DataFrame:
    if "token_latency_s" not in runs:
        return runs[:0].copy()
    good = runs[(runs.status == "ok") & runs.token_latency_s.notna()].copy()
    good["line"] = _labels(good)
    return good


if __name__ == "__main__":
    figures.redraw(NAME, has_rows, table, draw)
