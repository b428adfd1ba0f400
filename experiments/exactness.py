"""Are outputs unchanged (doubt 13 of the reviewers)? Tokens and logits against plain Transformers.

Run it with `python -m tpi_bench +experiment=exactness`; draw it again from stored rows with `python
-m experiments.exactness FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench.report import figures
from tpi_bench.report.drawing import Drawing, compared

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

BOUND = 1e-3  # what is accepted as rounding, in logits


def table(rows: pd.DataFrame) -> str:
    """One line a point: whether all tokens are equal, and the largest logit difference."""
    columns = ["system", "system_collective", "system_window", "num_devices", "num_tokens"]
    columns = [*[c for c in columns if c in rows], "tokens_equal", "max_logit_diff"]
    equal = int(rows.tokens_equal.sum())
    verdict = f"{equal} of {len(rows)} points give the tokens of Transformers; "
    verdict += f"largest logit difference {rows.max_logit_diff.max():.1e} (accepted: {BOUND:.0e})"
    return f"{rows[columns].fillna('-').to_string(index=False)}\n{verdict}"


def draw(rows: pd.DataFrame) -> Figure:
    """Largest logit difference of each system against the number of devices.

    A line is the worst of all windows and prompts, which the table lists.
    """
    labels = list(dict.fromkeys(rows.label))
    colours = figures.palette(labels)
    figure = figures.new_figure()
    axes = figure.subplots()
    for label, marker in figures.with_markers(labels):
        line = rows[rows.label == label].groupby("num_devices").max_logit_diff.max()
        axes.plot(line.index, line, marker=marker, color=colours[label], label=label)
    axes.axhline(BOUND, color="0.4", linestyle="--", linewidth=0.7, label="accepted")
    axes.set_yscale("log")
    axes.set_xlabel("devices")
    axes.set_xticks(sorted(rows.num_devices.unique()))
    axes.set_ylabel("largest logit difference")
    axes.set_title(f"{rows.model.iloc[0]}, {int(rows.num_tokens.max())} tokens", fontsize=7.5)
    axes.legend(ncol=2, loc="upper left", bbox_to_anchor=(0, -0.24), borderaxespad=0, frameon=False)
    return figure


DRAWING = Drawing(
    name="exactness",
    rows=compared,
    table=table,
    draw=draw,
    nothing="no point succeeded with check=true",
)

if __name__ == "__main__":
    DRAWING.again()
