"""Is the virtual testbed true? Its token latency and TTFT against wall-clock runs, case by case.

Every case runs in real processes and in virtual time with measured cost, on cores that no two
devices share. Run it with `python -m tpi_bench +experiment=fig_fidelity`; draw it again with
`python -m experiments.fig_fidelity FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench.report import figures, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

BOUND = 0.10  # what is asked of every case
MEDIAN_BOUND = 0.05  # and of the median of cases


def table(rows: pd.DataFrame) -> str:
    """One line a case: wall-clock median and range, virtual time, and the error."""
    shown = rows[["case", "wall_ms", "low_ms", "high_ms", "virtual_ms", "error", "ttft_error"]]
    worst = rows.loc[rows.error.abs().idxmax()]
    inside = int((rows.error.abs() <= BOUND).sum())
    return (
        f"{shown.to_string(index=False, formatters=_FORMATS)}\n"
        f"{inside} of {len(rows)} cases within {BOUND:.0%}; median error "
        f"{rows.error.abs().median():.1%} (asked: {MEDIAN_BOUND:.0%}); worst {worst.error:+.1%}: "
        f"{worst.case}"
    )


def draw(rows: pd.DataFrame) -> Figure:
    """Virtual over wall-clock token latency, one mark a case, with the range of the repeats."""
    figure = figures.new_figure(0.9 + 0.13 * len(rows))
    axes = figure.subplots()
    places = range(len(rows))
    ratio = rows.virtual_ms / rows.wall_ms
    spread = [ratio - rows.virtual_ms / rows.high_ms, rows.virtual_ms / rows.low_ms - ratio]
    axes.errorbar(ratio, places, xerr=[s.clip(lower=0) for s in spread], fmt="o", capsize=1.5)
    axes.axvline(1.0, color="0.3", linewidth=0.7)
    axes.axvspan(1 - BOUND, 1 + BOUND, color="0.85", zorder=0)
    axes.set_yticks(list(places), rows.case)
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("virtual / wall-clock token latency")
    figure.suptitle("bars: range of the wall-clock repeats; grey: within 10 %", fontsize=6.5)
    return figure


_FORMATS = {
    "wall_ms": "{:.1f}".format,
    "low_ms": "{:.1f}".format,
    "high_ms": "{:.1f}".format,
    "virtual_ms": "{:.1f}".format,
    "error": "{:+.1%}".format,
    "ttft_error": "{:+.1%}".format,
}


def cases(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a case that succeeded on both testbeds; times in ms, errors relative."""
    good = succeeded(runs)
    good["case"] = [_name(row) for row in good.to_dict("records")]
    wall = good[good.clock == "wall"].groupby("case", sort=False)
    virtual = good[good.clock == "virtual"].groupby("case", sort=False)
    rows = wall.token_latency_s.agg(["median", "min", "max"]) * 1e3
    rows.columns = ["wall_ms", "low_ms", "high_ms"]
    rows["virtual_ms"] = virtual.token_latency_s.median() * 1e3
    rows["error"] = rows.virtual_ms / rows.wall_ms - 1
    rows["ttft_error"] = virtual.ttft_s.median() / wall.ttft_s.median() - 1
    return rows.dropna(subset=["virtual_ms"]).reset_index()


def _name(row: dict) -> str:
    name = names.system_label(row)
    if row["num_devices"] == 1:
        return f"{name}, 1 device"
    return f"{name}, {row['num_devices']} devices, {row['link_latency_ms']:g} ms"


DRAWING = Drawing(
    name="fig_fidelity",
    rows=cases,
    table=table,
    draw=draw,
    nothing="no case ran on both testbeds",
)

if __name__ == "__main__":
    DRAWING.again()
