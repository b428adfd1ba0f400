"""Does every system say what Transformers says, at every precision, and what does a precision cost?

Doubt 13 of the paper's reviewers (are outputs unchanged?), for every system of the comparison. Each
is held against Transformers with the values that its weights have and in what it computes in; the
logit difference stands beside what rounding alone may make of it, and the perplexity of a page of
text says what is lost. Run it with `python -m tpi_bench +experiment=tab_equivalence`; draw it again
with `python -m experiments.tab_equivalence FOLDER`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tpi_bench.report import figures, names
from tpi_bench.report.drawing import Drawing, compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ORDER = ("float32", "bfloat16", "float16", "q8", "q4")
_OLDER = {"Q8_0": "q8", "Q4_0": "q4"}  # rows that had no column for weights


def table(rows: pd.DataFrame) -> str:
    """A line a system and precision: tokens, logits beside their bound, and perplexity."""
    shown = pd.DataFrame(
        {
            "system": rows.name,
            "weights": rows.weights,
            "computed in": rows.dtype,
            "runs all equal": rows.equal_runs,
            "same tokens": [f"{a:.0f}/{b:.0f}" for a, b in zip(rows.same, rows.num, strict=True)],
            "before the first other": rows.leading.map("{:.0f}".format),
            "logit difference": rows.logits.map("{:.1e}".format),
            "bound": rows.bound.map("{:.1e}".format),
            "perplexity": rows.perplexity.map("{:.3f}".format),
            "of fp32": _ratios(rows).map("{:.4f}".format),
        }
    ).replace("nan", "-")
    return f"{shown.to_string(index=False)}\n{_verdict(rows)}"


def _verdict(rows: pd.DataFrame) -> str:
    """What computes in fp32 and does not round again must have every token."""
    others = rows[rows.name != "Transformers"]  # which is held against itself
    exact = others[others.dtype == "float32"]
    exact = exact[~(exact.is_library & exact.weights.isin(("q8", "q4")))]
    count = int((exact.same == exact.num).sum())
    lines = [
        f"computed in fp32: {count} of {len(exact)} give every token of Transformers; largest "
        f"logit difference {exact.logits.max():.1e}"
    ]
    half = rows[(rows.dtype != "float32") & rows.bound.notna()]
    if len(half):
        share = (half.logits / half.bound).max()
        lines.append(f"in half precision: logits within {share:.2f} of their bound")
    return "\n".join(lines)


def _ratios(rows: pd.DataFrame) -> pd.Series:
    """Each perplexity over that of fp32 weights in the same system."""
    reference = rows[rows.weights == "float32"].set_index("name").perplexity
    return rows.perplexity / rows.name.map(reference)


def draw(rows: pd.DataFrame) -> Figure:
    """Share of equal tokens, system by precision; in each field the largest logit difference."""
    labels = list(dict.fromkeys(rows.name))
    kinds = sorted(set(rows.weights), key=_ORDER.index)
    shares = np.full((len(labels), len(kinds)), np.nan)
    figure = figures.new_figure(1.1 + 0.27 * len(labels))
    axes = figure.subplots()
    for row in rows.to_dict("records"):
        at = labels.index(row["name"]), kinds.index(row["weights"])
        shares[at] = row["same"] / row["num"]
        logits = f"\n{row['logits']:.1g}" if row["logits"] == row["logits"] else ""
        colour = "w" if shares[at] < 0.5 else "k"
        text = f"{shares[at]:.0%}{logits}"
        axes.text(at[1], at[0], text, ha="center", va="center", fontsize=6, color=colour)
    axes.imshow(shares, vmin=0, vmax=1, aspect="auto", cmap="cividis")
    axes.set_xticks(range(len(kinds)), [_tick(rows, kind) for kind in kinds], fontsize=6)
    axes.set_yticks(range(len(labels)), labels, fontsize=6.5)
    axes.grid(False)
    axes.set_title("tokens equal to Transformers'\nand largest logit difference", fontsize=7)
    if rows.perplexity.notna().any():
        axes.set_xlabel("perplexity of a page of text,\nand beside fp32's", fontsize=6.5)
    return figure


def _tick(rows: pd.DataFrame, kind: str) -> str:
    """A precision, and what it costs."""
    found = rows.assign(ratio=_ratios(rows))[(rows.weights == kind) & rows.perplexity.notna()]
    if found.empty:
        return names.precision_name(kind)
    cost = "" if kind == "float32" else f"\n{found.ratio.iloc[0] - 1:+.1%}"
    return f"{names.precision_name(kind)}\n{found.perplexity.iloc[0]:.2f}{cost}"


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a system and precision, over all its prompts, with a perplexity where one was asked."""
    rows = _named(compared(runs))
    if rows.empty:
        return rows
    summary = rows.groupby(["name", "weights"], sort=False).agg(
        dtype=("dtype", "first"),
        is_library=("is_library", "first"),
        equal_runs=("tokens_equal", lambda equal: f"{int(equal.sum())}/{len(equal)}"),
        same=("num_same_tokens", "sum"),
        num=("num_tokens", "sum"),
        leading=("num_leading_tokens", "median"),
        logits=("max_logit_diff", "max"),
        bound=("logit_bound", "min"),
    )
    if "perplexity" in runs and runs.perplexity.notna().any():
        read = _named(runs[runs.perplexity.notna()].copy())
        summary["perplexity"] = read.groupby(["name", "weights"]).perplexity.median()
    else:
        summary["perplexity"] = np.nan
    return summary.reset_index()


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """With a name that says how many devices there are, and what weights are held in."""
    cells = rows.to_dict("records")
    rows["name"] = [_name(row) for row in cells]
    rows["weights"] = [_weights(row) for row in cells]
    if "logit_bound" not in rows:
        rows["logit_bound"] = np.nan
    return rows


def _name(row: Mapping[Any, Any]) -> str:
    name = names.system_name(row)
    for weights in _OLDER:
        name = name.removesuffix(f" {weights}")
    if row["is_library"]:
        return name
    return f"{name}, {row['num_devices']:.0f} device{'s' * (row['num_devices'] > 1)}"


def _weights(row: Mapping[Any, Any]) -> str:
    if isinstance(row.get("weights"), str):
        return str(row["weights"])
    return _OLDER.get(str(row.get("system_weights")), str(row["dtype"]))


DRAWING = Drawing(
    name="tab_equivalence",
    rows=_summary,
    table=table,
    draw=draw,
    nothing="no point succeeded with check=true",
)

if __name__ == "__main__":
    DRAWING.again()
