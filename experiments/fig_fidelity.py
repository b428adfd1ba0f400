"""Is the virtual testbed true? Its token latency and TTFT against wall-clock runs, case by case.

Every case runs in real processes, on cores that no two devices share, and in virtual time in both
ways: with measured cost, where operators run and are timed, and with modelled cost, the roofline of
this host's profile, which larger testbeds need. Run it with
`python -m tpi_bench +experiment=fig_fidelity`; draw it again with
`python -m experiments.fig_fidelity FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from tpi_bench.report import figures, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOUND = 0.10  # what is asked of every case
MEDIAN_BOUND = 0.05  # and of the median of cases
COSTS = ("measured", "modelled")
TIMES = {"token_latency_s": "token latency", "ttft_s": "TTFT"}


def table(rows: pd.DataFrame) -> str:
    """One line a case: wall-clock median and range, and the error of each cost; then a summary."""
    lines = [
        f"{shown_time}\n{_table_of(rows[rows.time == time])}"
        for time, shown_time in TIMES.items()
        if time in set(rows.time)
    ]
    for (time, cost), each in rows.groupby(["time", "cost"], sort=False):
        worst = each.loc[each.error.abs().idxmax()]
        inside = int((each.error.abs() <= BOUND).sum())
        lines.append(
            f"{TIMES[str(time)]}, {cost} cost: {inside} of {len(each)} cases within {BOUND:.0%}; "
            f"median error {each.error.abs().median():.1%} (asked: {MEDIAN_BOUND:.0%}), worst "
            f"{worst.error:+.1%}: {worst.case}"
        )
    return "\n".join(lines)


def _table_of(rows: pd.DataFrame) -> str:
    errors = rows.pivot(index="case", columns="cost", values="error")
    wall = rows.drop_duplicates("case").set_index("case")[["wall_ms", "low_ms", "high_ms"]]
    shown = wall.join(errors[[cost for cost in COSTS if cost in errors]]).reset_index()
    times = dict.fromkeys(wall.columns, "{:.1f}".format)
    relative = dict.fromkeys(errors.columns, "{:+.1%}".format)
    return shown.to_string(index=False, formatters=times | relative)


def draw(rows: pd.DataFrame) -> Figure:
    """Virtual over wall-clock time, one line a case, with the range of the wall-clock repeats."""
    cases = list(dict.fromkeys(rows.case))
    figure = figures.new_figure(1.1 + 0.13 * len(cases), num_columns=2)
    times = [time for time in TIMES if time in set(rows.time)]
    panels = figure.subplots(1, len(times), sharey=True, squeeze=False)[0]
    for axes, time in zip(panels, times, strict=True):
        _draw_errors(axes, rows[rows.time == time], cases)
        axes.set_xlabel(f"virtual / wall-clock {TIMES[time]}")
    panels[0].set_yticks(range(len(cases)), cases)
    panels[0].tick_params(axis="y", labelsize=6)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle("bars: range of the wall-clock repeats; grey: within 10 %", fontsize=6.5)
    return figure


def _draw_errors(axes: Axes, rows: pd.DataFrame, cases: list[str]) -> None:
    colours = figures.palette(COSTS)
    for number, (cost, marker) in enumerate(figures.with_markers(COSTS)):
        each = rows[rows.cost == cost]
        ratio = each.virtual_ms / each.wall_ms
        spread = [ratio - each.virtual_ms / each.high_ms, each.virtual_ms / each.low_ms - ratio]
        axes.errorbar(
            ratio,
            [cases.index(case) + 0.3 * (number - 0.5) for case in each.case],
            xerr=[s.clip(lower=0) for s in spread],
            fmt=marker,
            capsize=1.5,
            color=colours[cost],
            label=f"{cost} cost",
        )
    axes.axvline(1.0, color="0.3", linewidth=0.7)
    axes.axvspan(1 - BOUND, 1 + BOUND, color="0.85", zorder=0)


def cases(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a case that succeeded on both clocks, a cost and a time; errors are relative."""
    good = succeeded(runs)
    good["case"] = [_name(row) for row in good.to_dict("records")]
    wall, virtual = good[good.clock == "wall"], good[good.clock == "virtual"]
    found = [
        _errors(time, cost, wall, virtual[virtual.cost == cost])
        for time in TIMES
        for cost in COSTS
        if (virtual.cost == cost).any()
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _errors(time: str, cost: str, wall: pd.DataFrame, virtual: pd.DataFrame) -> pd.DataFrame:
    rows = wall.groupby("case", sort=False)[time].agg(["median", "min", "max"]) * 1e3
    rows.columns = ["wall_ms", "low_ms", "high_ms"]
    rows["virtual_ms"] = virtual.groupby("case")[time].median() * 1e3
    rows["error"] = rows.virtual_ms / rows.wall_ms - 1
    rows.insert(0, "time", time)
    rows.insert(1, "cost", cost)
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
