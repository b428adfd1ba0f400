"""Every published figure that we have a row for, what we get, the ratio, and why it differs.

Rows are those of the committed folders, each read as its own experiment reads them: the paper's
tables 1, 2, 6, 3 and 8 (`tab_overview`, `tab_memory`, `tab_case_study`), prima.cpp's four devices
(`fig_prima`) and what `advise` is held against. `published/reasons.csv` says why a group differs;
a reason stands there as one, not as a cause that was isolated. Make it with `python -m
experiments.tab_published results`, which writes `results/tab_published`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import advise_published, fig_prima, tab_case_study, tab_memory, tab_overview
from tpi_bench.report import figures
from tpi_bench.report.folder import CannotWrite, ResultsFolder, read_runs

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "tab_published"
REASONS = Path(__file__).parent / "published" / "reasons.csv"
_NEAR = 1.25  # times as much or as little, which the figure's band shows


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A published figure and ours. `quantity` is token or TTFT, in s, or memory, in GB a device."""

    table: str
    setting: str
    quantity: str
    theirs: float
    ours: float
    folder: str

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def compared(results: Path) -> list[Compared]:
    """Of all folders that are there. Raises ValueError where none is."""
    found = [
        each
        for name, read in _FOLDERS.items()
        if (results / name).is_dir()
        for each in read(results / name)
        if each.ours == each.ours and each.theirs == each.theirs
    ]
    if not found:
        raise ValueError(f"{results} holds none of {', '.join(_FOLDERS)}; give results")
    return found


def table(found: list[Compared]) -> pd.DataFrame:
    """A line a figure, with the reason of its group."""
    import pandas as pd

    reasons = pd.read_csv(REASONS).set_index(["table", "quantity"]).why
    lines = [
        {
            "table": each.table,
            "setting": each.setting,
            "quantity": f"{each.quantity} ({'GB' if each.quantity == 'memory' else 's'})",
            "theirs": each.theirs,
            "ours": each.ours,
            "ratio": each.ratio,
            "folder": each.folder,
            "why": reasons[each.table, each.quantity],
        }
        for each in found
    ]
    return pd.DataFrame(lines)


def summary(found: list[Compared]) -> pd.DataFrame:
    """A line a group: how many, median and range of the ratios, and how many are near."""
    import pandas as pd

    lines = []
    for (name, quantity), ratios in _groups(found).items():
        near = sum(1 / _NEAR <= ratio <= _NEAR for ratio in ratios)
        lines.append(
            {
                "table": name,
                "quantity": quantity,
                "figures": len(ratios),
                "ours over theirs": figures.median_and_range(pd.Series(ratios), "{:.2f}"),
                "within a quarter": f"{near} of {len(ratios)}",
            }
        )
    return pd.DataFrame(lines)


def draw(found: list[Compared]) -> Figure:
    """Ratios on a logarithmic axis, a line a group."""
    groups = _groups(found)
    figure = figures.new_figure(0.9 + 0.22 * len(groups), num_columns=2)
    axes = figure.subplots()
    axes.axvspan(1 / _NEAR, _NEAR, color="0.9", linewidth=0, label="within a quarter")
    axes.axvline(1.0, color="0.4", linewidth=0.7)
    for place, ratios in enumerate(groups.values()):
        axes.plot(ratios, [place] * len(ratios), "o", color="C0", alpha=0.5, markersize=4)
        axes.plot(np.median(ratios), place, "|", color="k", markersize=11)
    axes.plot([], [], "|k", markersize=9, label="median")
    names = [f"{_title(*key)} ({len(ratios)})" for key, ratios in groups.items()]
    axes.set_yticks(range(len(groups)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    figures.plain_numbers(axes.xaxis)
    axes.set_xlabel("ours over theirs; left of 1 is less time or memory")
    axes.legend(frameon=False, loc="upper right")
    return figure


def _title(name: str, quantity: str) -> str:
    whose = f"the paper's table {name}" if name[0].isdigit() else name
    return f"{whose}, {quantity}"


def _groups(found: list[Compared]) -> dict[tuple[str, str], list[float]]:
    groups: dict[tuple[str, str], list[float]] = {}
    for each in found:
        groups.setdefault((each.table, each.quantity), []).append(each.ratio)
    return groups


def _overview(folder: Path) -> Iterator[Compared]:
    """Table 1: with a window at the disk rate that serves all rows best, a fit."""
    rows = tab_overview.DRAWING.rows(read_runs(folder))
    rate, fitted = tab_overview.fit(rows)
    for row in fitted.itertuples():
        yield Compared(
            table="1 with a window",
            setting=f"{row.model}, 8 devices, disks of {rate:.2f} GB/s (fitted)",
            quantity="token",
            theirs=row.paper,
            ours=row.ours,
            folder=folder.name,
        )
    good = rows[rows.status == "ok"]
    usual = good[good.prompt_tokens == good.prompt_tokens.mode().max()]
    nearest = usual[usual.scheduler == "on"]
    nearest = nearest.assign(off=(nearest.disk_gb_per_s - rate).abs())
    for _, group in nearest.groupby("model", sort=False):
        row = group.loc[group.off.idxmin()]
        yield Compared(
            table="1 with a window",
            setting=f"{row.model}, 8 devices, disks of {row.disk_gb_per_s:.2f} GB/s, "
            f"{row.prompt_tokens:.0f} tokens",
            quantity="TTFT",
            theirs=row.paper_ttft_s,
            ours=row.ttft_s,
            folder=folder.name,
        )
    for row in usual[usual.scheduler == "off"].itertuples():
        for quantity, theirs, ours in (
            ("token", row.paper_token_s, row.token_latency_s),
            ("TTFT", row.paper_ttft_s, row.ttft_s),
        ):
            yield Compared(
                table="1 without a window",
                setting=f"{row.model}, 8 devices",
                quantity=quantity,
                theirs=theirs,
                ours=ours,
                folder=folder.name,
            )


def _memory(folder: Path) -> Iterator[Compared]:
    """Tables 2 and 6."""
    rows = tab_memory.DRAWING.rows(read_runs(folder))
    for row in rows[rows.status == "ok"].itertuples():
        yield Compared(
            table=f"2 and 6 {'without' if row.window == 'off' else 'with'} a window",
            setting=f"{row.model}, {row.num_devices} devices, window {row.window}",
            quantity="memory",
            theirs=row.paper_gb,
            ours=row.held_gb,
            folder=folder.name,
        )


def _case_study(folder: Path) -> Iterator[Compared]:
    """Tables 3 and 8, of the laptops in virtual time."""
    rows = tab_case_study.DRAWING.rows(read_runs(folder))
    rows = rows[rows.is_in_paper & rows.is_usual_prompt & (rows.status == "ok")]
    for row in rows.itertuples():
        for quantity, theirs, ours in (
            ("token", row.paper_token_latency_s, row.token_latency_s),
            ("TTFT", row.paper_ttft_s, row.ttft_s),
        ):
            yield Compared(
                table="3, stand-ins" if "stand-in" in row.case else "3 and 8",
                setting=f"{row.model}, {row.case}",
                quantity=quantity,
                theirs=theirs,
                ours=ours,
                folder=folder.name,
            )


def _prima(folder: Path) -> Iterator[Compared]:
    """Halda's own choice on prima.cpp's four devices."""
    rows = fig_prima.DRAWING.rows(read_runs(folder))
    for row in fig_prima.chosen_by_halda(rows).itertuples():
        if row.model in fig_prima.PUBLISHED:
            token_ms, first_ms = fig_prima.PUBLISHED[row.model]
            for quantity, theirs_ms, ours in (
                ("token", token_ms, row.token_latency_s),
                ("TTFT", first_ms, row.ttft_s),
            ):
                yield Compared(
                    table="prima.cpp",
                    setting=f"{row.model}, {row.weights}, its ring on its four",
                    quantity=quantity,
                    theirs=theirs_ms * 1e-3,
                    ours=ours,
                    folder=folder.name,
                )


def _advice(folder: Path) -> Iterator[Compared]:
    """What `advise` is held against, but what others here are the same way of: the paper's laptops
    with its own shares, and prima.cpp's ring.
    """
    for theirs, ours in advise_published.pairs(folder):
        if ours is None or theirs["who"].startswith(("prima.cpp", "TPI-LLM")):
            continue
        for quantity, published, own in (
            ("token", theirs["token_latency_s"], ours.token_latency_s),
            ("TTFT", theirs["ttft_s"], ours.ttft_s),
        ):
            yield Compared(
                table=theirs["who"],
                setting=f"{theirs['model']} {theirs['weights']}, {theirs['on']}",
                quantity=quantity,
                theirs=published,
                ours=own,
                folder=f"{folder.name}/{theirs['folder']}",
            )


_FOLDERS: dict[str, Callable[[Path], Iterator[Compared]]] = {
    "tab_overview": _overview,
    "tab_memory": _memory,
    "tab_case_study": _case_study,
    "advise": _advice,
    "fig_prima": _prima,
}


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(f"usage: python -m experiments.{NAME} RESULTS", file=sys.stderr)
        sys.exit(0 if sys.argv[1:] == ["--help"] else 2)
    try:
        results = Path(sys.argv[1])
        found = compared(results)
        folder = results / NAME
        with ResultsFolder(folder).writing():
            folder.mkdir(exist_ok=True)
            lines = table(found)
            lines.to_csv(folder / f"{NAME}.csv", index=False, float_format="%.4g")
            drawn = figures.save_figure(draw(found), folder, NAME)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, CannotWrite) else 2)
    shown: dict[str, Any] = {"index": False, "float_format": "{:.3g}".format}
    print(lines.drop(columns=["why", "folder"]).to_string(**shown))
    print(summary(found).to_string(index=False), *drawn, sep="\n")


if __name__ == "__main__":
    main()
