"""Are outputs unchanged (doubt 13 of the reviewers)? Tokens and logits against plain Transformers.

Run it with `python -m tpi_bench +experiment=exactness`; draw it again from stored rows with `python
-m experiments.exactness FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench import figures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "exactness"
BOUND = 1e-3  # what is accepted as rounding, in logits


def has_rows(runs: pd.DataFrame) -> bool:
    """Whether there is anything to draw."""
    return not _checked(runs).empty


def table(runs: pd.DataFrame) -> str:
    """One line a point: whether all tokens are equal, and the largest logit difference."""
    rows = _checked(runs)
    if rows.empty:
        return "no point succeeded with check=true"
    columns = ["system", "system_collective", "system_window", "num_devices", "num_tokens"]
    columns = [*[c for c in columns if c in rows], "tokens_equal", "max_logit_diff"]
    equal = int(rows.tokens_equal.sum())
    verdict = f"{equal} of {len(rows)} points give the tokens of Transformers; "
    verdict += f"largest logit difference {rows.max_logit_diff.max():.1e} (accepted: {BOUND:.0e})"
    return f"{rows[columns].fillna('-').to_string(index=False)}\n{verdict}"


def draw(runs: pd.DataFrame) -> Figure:
    """Largest logit difference of each system against the number of devices.

    A line is the worst of all windows and prompts, which the table lists.
    """
    rows = _checked(runs)
    rows["label"] = [
        figures.system_label(row | {"system_window": None}) for row in rows.to_dict("records")
    ]
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


def _checked(runs: pd.DataFrame) -> pd.DataFrame:
    if "tokens_equal" not in runs:
        return runs[:0].copy()
    rows = runs[(runs.status == "ok") & runs.tokens_equal.notna()].copy()
    return rows.assign(tokens_equal=rows.tokens_equal.astype(bool))


if __name__ == "__main__":
    figures.redraw(NAME, has_rows, table, draw)
