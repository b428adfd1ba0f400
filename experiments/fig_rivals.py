"""TPI-LLM beside today's rivals, real and as rank programs of this engine.

Critics ask why TPI-LLM is compared with neither distributed-llama nor llama.cpp over several
devices; since then prima.cpp came. Same weights, same emulated links, as many devices and threads;
each is held against tensor parallelism with a direct allreduce, repeat by repeat. What is real
software is named so. In virtual time: four Raspberry Pi 5 as distributed-llama
measured them, its figures as crosses. Run it with `python -m tpi_bench +experiment=fig_rivals`;
draw it again with `python -m experiments.fig_rivals FOLDER`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded
from tpi_bench.report.statistics import median_interval, paired_ratio

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_YARDSTICK = ("TPI direct", "TPI star window auto")  # the first that a panel has
# distributed-llama, Llama 3 8B in q40 on so many Raspberry Pi 5 (8 GB), a gigabit switch: seconds a
# token (its repository: 3.07 and 4.08 tokens a second).
_PUBLISHED = {2: 1 / 3.07, 4: 1 / 4.08}


def table(rows: pd.DataFrame) -> str:
    """A line a panel, system and latency, and what is published beside it."""
    import pandas as pd

    lines = list(_lines(rows))
    failed = rows[rows.status != "ok"]
    parts = [pd.DataFrame(lines).to_string(index=False)]
    for (panel, line), own in failed.groupby(["panel", "line"], sort=False):
        reason = str(own.error.iloc[0]).partition(";")[0]
        parts.append(f"{panel}: {line} is {own.status.iloc[0]}: {reason}")
    return "\n".join(parts)


def _lines(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    good = rows[rows.status == "ok"]
    for (panel, latency), field in good.groupby(["panel", "link_latency_ms"], sort=False):
        beside = next((n for n in _YARDSTICK if n in set(field.line)), None)
        for line, own in field.groupby("line", sort=False):
            yardstick = field[field.line == beside]
            ratio = paired_ratio(*(_by_repeat(part) for part in (own, yardstick)))
            token = median_interval(_by_repeat(own) * 1e3)
            yield {
                "panel": panel,
                "ms a hop": f"{latency:g}",
                "system": line,
                "real": "yes" if own.is_library.iloc[0] else "",
                "token ms": token.text("{:.4g}"),
                "TTFT ms": f"{own.ttft_s.median() * 1e3:.4g}",
                "limit ms": f"{own.limit_token_s.median() * 1e3:.4g}",
                "over its own": "-" if line == beside or not ratio.num else ratio.text("{:.2f}"),
                "published ms": _published(own),
            }


def _by_repeat(rows: pd.DataFrame) -> pd.Series:
    return rows.groupby("repeat").token_latency_s.median()


def _published(own: pd.DataFrame) -> str:
    first = own.iloc[0]
    if first.clock != "virtual" or first.system != "dllama" or first.num_devices not in _PUBLISHED:
        return "-"
    return f"{_PUBLISHED[first.num_devices] * 1e3:.0f}"


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a case: token latency by link latency, or by devices in virtual time."""
    good = rows[rows.status == "ok"]
    panels = list(dict.fromkeys(good.group))
    lines = list(dict.fromkeys(good.line))
    styles = looks.line_styles(lines)
    figure = figures.new_figure(2.9, num_columns=2)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        own = good[good.group == panel]
        is_virtual = (own.clock == "virtual").all()
        along = "num_devices" if is_virtual else "link_latency_ms"
        for line in lines:
            _draw_line(axes, own[own.line == line], along, line, styles[line])
        if is_virtual:
            counts = [count for count in _PUBLISHED if count in set(own.num_devices)]
            times = [_PUBLISHED[count] * 1e3 for count in counts]
            axes.plot(counts, times, **looks.PAPER, label="distributed-llama's own figures")
            axes.set_xticks(sorted(own.num_devices.unique()))
        axes.set_xlabel("devices" if is_virtual else "ms a hop", fontsize=7)
        figures.log_milliseconds(axes)
        axes.set_title(panel, fontsize=6)
    first = figure.axes[0]
    first.set_ylabel("token latency (ms)")
    handles, called = figures.handles_of(figure.axes)
    handles += first.plot([], [], **looks.LIMIT)
    figure.legend(
        handles,
        [*called, "physical limit of each"],
        loc="outside lower center",
        ncol=4,
        frameon=False,
    )
    return figure


def _draw_line(axes: Axes, own: pd.DataFrame, along: str, line: str, style: dict[str, Any]) -> None:
    if own.empty:
        return
    times = own.groupby(along).token_latency_s.agg(["median", "min", "max"]) * 1e3
    is_real = bool(own.is_library.iloc[0])
    axes.errorbar(
        times.index,
        times["median"],
        [times["median"] - times["min"], times["max"] - times["median"]],
        label=f"{line} (real)" if is_real else line,
        elinewidth=0.7,
        **style,
    )
    limit = own.groupby(along).limit_token_s.median() * 1e3
    axes.plot(limit.index, limit, **{**looks.LIMIT, "color": style["color"]})


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows, if any succeeded, with the names of their line and panel."""
    rows = (runs if len(succeeded(runs)) else runs[:0]).copy()
    rows["line"] = [names.system_name(row) for row in rows.to_dict("records")]
    cells = rows.to_dict("records")
    rows["group"] = [_group(row) for row in cells]
    rows["panel"] = [_panel(row) for row in cells]
    return rows


def _panel(row: dict[Any, Any]) -> str:
    devices = f"{row['num_devices']:.0f} devices, " if row["clock"] == "virtual" else ""
    return devices + _group(row).replace("\n", " ")


def _group(row: dict[Any, Any]) -> str:
    """What is in one panel of the figure."""
    model = f"{names.model_name(row['model'])} {names.precision_name(row['weights'])}"
    if row["clock"] == "virtual":
        return f"{model},\nRaspberry Pi 5, virtual"
    cap = f"\n{row['memory_mb']:.0f} MB each" if row["memory_mb"] == row["memory_mb"] else ""
    shared = " on 2 cores" if row["devices_share_cores"] else ""
    return f"{model},\n{row['num_devices']:.0f} devices{shared}{cap}"


DRAWING = Drawing(name="fig_rivals", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
