"""How close is each system to its physical limit? Question 23, from the rows of other experiments.

A token takes at least its bytes over the bandwidth of memory or of disks, and its messages over the
links; each row has that limit beside it (`limit_token_s`), with the rates that were probed right
before it, or in virtual time the profile's. Here stands the share of that speed that each system
reaches, by which of the three takes most of its limit, measured and in virtual time. Devices that
share cores are left out: nobody knows their memory's share. `python -m experiments.tab_limits
FOLDER`, where FOLDER holds results folders (as `results`), leaves table and figure in
FOLDER/tab_limits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing
from tpi_bench.report.folder import CannotWrite, ResultsFolder, read_runs

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "tab_limits"
SOURCES = (
    "bench_engine",
    "fig_comparison",
    "fig_rivals",
    "fig_latency",
    "fig_precision",
    "fig_scaling",
    "fig_keep",
    "fig_lan",
    "fig_prima",
)
_LIMITS = {"limit_memory_s": "memory", "limit_disk_s": "disks", "limit_network_s": "links"}
_CLOCKS = {"wall": "measured", "virtual": "virtual"}
_NO_SYSTEMS = ("allreduce", "products")  # which make no tokens
_COLUMNS = [
    *("point", "status", "system", "label", "variant", "weights", "num_devices", "clock"),
    *("devices_share_cores", "token_latency_s", "limit_token_s", *_LIMITS, "beats_limit"),
]


def stored(folder: Path, sources: Sequence[str] = SOURCES) -> pd.DataFrame:
    """The rows of those results folders in `folder` that are there, with their `source`.

    Raises ValueError where none is.
    """
    import pandas as pd

    found = {
        name: read_runs(folder / name)
        for name in sources
        if (folder / name / "runs.parquet").is_file()
    }
    if not found:
        raise ValueError(f"{folder} holds none of {', '.join(sources)}; give results")
    parts = [runs.reindex(columns=_COLUMNS).assign(source=name) for name, runs in found.items()]
    return pd.concat([part.astype({"beats_limit": object}) for part in parts], ignore_index=True)


def table(rows: pd.DataFrame) -> str:
    """A line a system: medians with the range of nine in ten, and how many points; then by bits."""
    import pandas as pd

    shown = {
        key: _words(own.share) for key, own in rows.groupby(["line", "clock_name", "limited_by"])
    }
    places = [(clock, by) for clock in _CLOCKS.values() for by in _LIMITS.values()]
    cells = [
        {"system": line}
        | {f"{clock}: {by}": shown.get((line, clock, by), "-") for clock, by in places}
        for line in dict.fromkeys(rows.line)
    ]
    parts = [
        "share of the limit's speed, median [5 %, 95 %] (points), by what limits",
        pd.DataFrame(cells).to_string(index=False),
        *_by_precision(rows),
        f"rows of {', '.join(dict.fromkeys(rows.source))}",
    ]
    return "\n".join(parts)


def _by_precision(rows: pd.DataFrame) -> list[str]:
    """Measured on one device with everything in memory: the bits a weight has."""
    own = rows[(rows.clock == "wall") & (rows.limited_by == "memory") & (rows.num_devices == 1)]
    if own.empty:
        return []
    medians = own.pivot_table(index="line", columns="weights", values="share", sort=False)
    order = [weights for weights in names.PRECISIONS if weights in medians]
    shown = medians[order].rename(columns=names.PRECISIONS).map(_percent)
    return ["one device, measured, limited by memory, by what weights are held in", str(shown)]


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.0%}"


def _words(shares: pd.Series) -> str:
    low, high = shares.quantile([0.05, 0.95])
    spread = f" [{low:.0%}, {high:.0%}]" if len(shares) > 1 else ""
    return f"{shares.median():.0%}{spread} ({len(shares)})"


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a limit, a line a system: filled, measured; hollow, virtual time."""
    lines = list(dict.fromkeys(rows.line))
    limits = [by for by in _LIMITS.values() if by in set(rows.limited_by)]
    figure = figures.new_figure(1.2 + 0.19 * len(lines), num_columns=2)
    panels = figure.subplots(1, len(limits), sharey=True, squeeze=False)[0]
    for axes, by in zip(panels, limits, strict=True):
        _draw_shares(axes, rows[rows.limited_by == by], lines)
        axes.set_title(f"limited by {by}", fontsize=7.5)
        axes.set_xlabel("of the limit's speed")
    panels[0].set_yticks(range(len(lines)), lines)
    panels[0].invert_yaxis()
    handles = [
        panels[0].plot([], [], "o", color="0.3", fillstyle=fill, label=words)[0]
        for fill, words in (("full", "measured"), ("none", "virtual time"))
    ]
    handles += panels[0].plot([], [], **looks.LIMIT, label="the limit")
    figure.legend(handles=handles, loc="outside lower center", ncol=3, frameon=False)
    figure.suptitle("median and nine in ten points of each system", fontsize=7.5)
    return figure


def _draw_shares(axes: Axes, rows: pd.DataFrame, lines: list[str]) -> None:
    for (line, clock), own in rows.groupby(["line", "clock"], sort=False):
        look = looks.look_of(str(line))
        is_measured = clock == "wall"
        place = lines.index(str(line)) + (-0.17 if is_measured else 0.17)
        low, middle, high = np.quantile(own.share, [0.05, 0.5, 0.95])
        axes.plot([low, high], [place, place], color=look.colour, linewidth=0.9)
        fill = "full" if is_measured else "none"
        axes.plot(middle, place, look.marker, color=look.colour, fillstyle=fill, label=line)
    axes.axvline(1.0, **looks.LIMIT)
    axes.set_xlim(0, max(1.05, rows.share.quantile(0.95) * 1.02))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Those that make tokens of devices with cores of their own: `share` of the limit's speed and
    what it is `limited_by`, the `line` (a system without its variant), those of one kind together.
    """
    rows = runs[(runs.status == "ok") & (runs.limit_token_s > 0) & runs.token_latency_s.notna()]
    rows = rows[~rows.devices_share_cores.eq(True) & ~rows.system.isin(_NO_SYSTEMS)].copy()
    if rows.empty:
        return rows
    rows["share"] = rows.limit_token_s / rows.token_latency_s
    rows["limited_by"] = rows[list(_LIMITS)].fillna(0.0).idxmax(axis=1).map(_LIMITS)
    rows["line"] = rows.label
    rows["clock_name"] = rows.clock.map(_CLOCKS)
    order = {label: number for number, label in enumerate(looks.SYSTEMS)}
    rows["place"] = rows.line.map(order).fillna(len(order))
    return rows.sort_values("place", kind="stable")


DRAWING = Drawing(name=NAME, rows=_rows, table=table, draw=draw, nothing="no point has a limit")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{NAME}",
        description="How close each system is to its physical limit, from stored rows of others.",
    )
    parser.add_argument(
        "folder", type=Path, help="holds results folders; what is made is left in its tab_limits"
    )
    folder = parser.parse_args().folder
    try:
        runs = stored(folder)
        if DRAWING.rows(runs).empty:
            raise ValueError(f"{folder}: {DRAWING.nothing}")
        target = folder / NAME
        with ResultsFolder(target).writing():
            target.mkdir(exist_ok=True)
            shown, drawn = DRAWING.text(runs), DRAWING.save(runs, target)
            (target / f"{NAME}.txt").write_text(f"{shown}\n")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, CannotWrite) else 2)  # as the program's own
    print(shown, *drawn, sep="\n")


if __name__ == "__main__":
    main()
