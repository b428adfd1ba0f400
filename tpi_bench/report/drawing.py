"""An experiment's table and figure: pure functions of stored rows, after a sweep or again later."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpi_bench.report.figures import save_figure
from tpi_bench.report.folder import CannotWrite, ResultsFolder, read_runs, read_spans
from tpi_bench.report.hidden import name_hidden
from tpi_bench.report.older import told_of_older_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a module of `experiments/` calls DRAWING.

    `rows` takes those of the run table that it shows and adds columns of its own; there are none
    when nothing can be drawn, and `nothing` says so. `table` and `draw` get these rows. An
    experiment that keeps spans (`testbed.trace=true`) adds what they tell of each point to the run
    table with `of_spans`, which gets both tables.
    """

    name: str
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    table: Callable[[pd.DataFrame], str]
    draw: Callable[[pd.DataFrame], Figure]
    nothing: str = "no point succeeded"
    of_spans: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame] | None = None

    def stored(self, folder: Path) -> pd.DataFrame:
        """The run table of a results folder. Raises ValueError where a table is missing."""
        runs = read_runs(folder)
        return runs if self.of_spans is None else self.of_spans(runs, read_spans(folder))

    def text(self, runs: pd.DataFrame) -> str:
        """The table, or why there is none."""
        rows = self.rows(runs)
        if rows.empty:
            return self.nothing
        return "\n".join([self.table(rows), *_beaten_limits(rows)])

    def save(self, runs: pd.DataFrame, folder: Path) -> list[Path]:
        """PNG and PDF in `folder`; none when there is nothing to draw."""
        rows = self.rows(runs)
        if rows.empty:
            return []
        return save_figure(self.figure(rows), folder, self.name)

    def figure(self, rows: pd.DataFrame) -> Figure:
        """Of what `rows` picked, with what is said of every figure: hidden lines, beaten limits."""
        figure = self.draw(rows)
        for words in _beaten_limits(rows):
            title = figure.get_suptitle()
            figure.suptitle(f"{title}\n{words}" if title else words, fontsize=7.5)
        name_hidden(figure)
        figure.set_layout_engine("none")  # both files as it is laid out now
        return figure

    def again(self) -> None:
        """`python -m experiments.NAME FOLDER`: table and figure again from stored rows."""
        module = sys.modules["__main__"]
        parser = argparse.ArgumentParser(
            prog=f"python -m experiments.{self.name}",
            description=f"{(module.__doc__ or self.name).split(chr(10))[0]} Draws table and figure "
            f"again from stored rows; python -m tpi_bench +experiment={self.name} makes them.",
        )
        parser.add_argument("folder", type=Path, help="a results folder, in which they are left")
        folder = parser.parse_args().folder
        try:
            self._refuse_another(folder)
            with told_of_older_rows(folder), ResultsFolder(folder).writing():
                runs = self.stored(folder)
                if self.rows(runs).empty:
                    raise ValueError(f"{folder} holds no point of {self.name} that succeeded")
                shown, drawn = self.text(runs), self.save(runs, folder)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1 if isinstance(error, CannotWrite) else 2)  # as the program's own
        try:
            print(shown, *drawn, sep="\n", flush=True)
        except BrokenPipeError:  # whoever reads has gone, and has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _refuse_another(self, folder: Path) -> None:
        """A figure of this experiment beside rows of another would be wrong, and stay there."""
        made_for = ResultsFolder(folder).figure
        if made_for is not None and made_for.rpartition(".")[2] != self.name:
            raise ValueError(
                f"{folder} holds the rows of {made_for}, not of experiments.{self.name}; draw it "
                f"with: python -m {made_for} {folder}"
            )


def _beaten_limits(rows: pd.DataFrame) -> list[str]:
    """Says of how many points the limit is not to be believed; nothing where there is none."""
    if "beats_limit" not in rows:
        return []
    beaten = rows[rows.beats_limit.eq(True)]  # nothing in rows of points that failed
    if beaten.empty:
        return []
    why = "was probed at a slower moment"
    if "clock" in beaten and (beaten.clock == "virtual").all():  # its rates are given
        why = "is too high for them"
    words = f"{len(beaten)} of {len(rows)} points are faster than their limit, which {why}"
    return [f"{words} (column beats_limit)"]


def succeeded(runs: pd.DataFrame) -> pd.DataFrame:
    """A copy of the rows that are ok and have a token latency."""
    return runs[(runs.status == "ok") & runs.token_latency_s.notna()].copy()


def compared(runs: pd.DataFrame) -> pd.DataFrame:
    """A copy of the rows that were held against the oracle (`check=true`)."""
    rows = runs[(runs.status == "ok") & runs.tokens_equal.notna()].copy()
    return rows.assign(tokens_equal=rows.tokens_equal.astype(bool))
