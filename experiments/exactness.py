"""Are outputs unchanged (doubt 13 of the reviewers)? Tokens and logits against plain Transformers.

Run it with `python -m tpi_bench +experiment=exactness`; draw it again from stored rows with `python
-m experiments.exactness FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
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
    styles = looks.line_styles(list(rows.label))
    figure = figures.new_figure(2.2)
    axes = figure.subplots()
    for label, style in styles.items():
        line = rows[rows.label == label].groupby("num_devices").max_logit_diff.max()
        axes.plot(line.index, line, label=label, **style)
    axes.axhline(BOUND, **looks.LIMIT)
    axes.set_yscale("log")
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 6}
    axes.text(1.02, BOUND, "accepted", **place)
    axes.set_ylim(top=3 * BOUND)
    axes.set_xlabel("devices")
    axes.set_xticks(sorted(rows.num_devices.unique()))
    axes.set_ylabel("largest logit difference")
    tokens = int(rows.num_tokens.max())
    axes.set_title(f"{names.model_name(rows.model.iloc[0])}, {tokens} tokens", fontsize=7.5)
    figures.name_ends(axes)
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
