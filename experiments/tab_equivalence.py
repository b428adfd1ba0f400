"""Does every system say what Transformers says? Token agreement and logits, system by precision.

Doubt 13 of the paper's reviewers (are outputs unchanged?), for every system of the comparison. Each
is held against Transformers in the same precision; quantised weights against fp32. Run it with
`python -m tpi_bench +experiment=tab_equivalence`; draw it again with `python -m
experiments.tab_equivalence FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tpi_bench.report import figures, names
from tpi_bench.report.drawing import Drawing, compared

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def table(rows: pd.DataFrame) -> str:
    """A line a system and precision: tokens that agree, and the largest logit difference."""
    shown = rows.assign(
        **{
            "same tokens": [f"{a}/{b}" for a, b in zip(rows.same, rows.num, strict=True)],
            "equal before the first other": rows.leading.map("{:.0f}".format),
            "logit difference": rows.logits.map("{:.1e}".format).replace("nan", "-"),
        }
    ).rename(columns={"equal_runs": "runs all equal"})
    exact = rows[rows.precision == "float32"]
    verdict = f"fp32: {int((exact.same == exact.num).sum())} of {len(exact)} systems give every "
    verdict += f"token of Transformers; largest logit difference {exact.logits.max():.1e}"
    columns = ["name", "precision", "runs all equal", "same tokens"]
    columns += ["equal before the first other", "logit difference"]
    return f"{shown[columns].rename(columns={'name': 'system'}).to_string(index=False)}\n{verdict}"


def draw(rows: pd.DataFrame) -> Figure:
    """Share of equal tokens, system by precision; in each field the largest logit difference."""
    labels = list(dict.fromkeys(rows.name))
    kinds = list(dict.fromkeys(rows.precision))
    shares = np.full((len(labels), len(kinds)), np.nan)
    figure = figures.new_figure(0.9 + 0.25 * len(labels))
    axes = figure.subplots()
    for row in rows.to_dict("records"):
        at = labels.index(row["name"]), kinds.index(row["precision"])
        shares[at] = row["same"] / row["num"]
        logits = f"\n{row['logits']:.1g}" if row["logits"] == row["logits"] else ""
        colour = "w" if shares[at] < 0.5 else "k"
        text = f"{shares[at]:.0%}{logits}"
        axes.text(at[1], at[0], text, ha="center", va="center", fontsize=5.5, color=colour)
    axes.imshow(shares, vmin=0, vmax=1, aspect="auto", cmap="cividis")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(False)
    axes.set_title("tokens equal to Transformers'\nand largest logit difference", fontsize=7)
    return figure


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a system and precision, over all its prompts."""
    rows = compared(runs)
    rows["name"] = [
        names.system_name(row).removesuffix(f" {row.get('system_weights')}")
        for row in rows.to_dict("records")
    ]
    rows["precision"] = [
        weights if str(weights).startswith("Q") else dtype
        for weights, dtype in zip(rows.get("system_weights", rows.dtype), rows.dtype, strict=True)
    ]
    groups = rows.groupby(["name", "precision"], sort=False)
    return groups.agg(
        equal_runs=("tokens_equal", lambda equal: f"{int(equal.sum())}/{len(equal)}"),
        same=("num_same_tokens", "sum"),
        num=("num_tokens", "sum"),
        leading=("num_leading_tokens", "median"),
        logits=("max_logit_diff", "max"),
    ).reset_index()


DRAWING = Drawing(
    name="tab_equivalence",
    rows=_summary,
    table=table,
    draw=draw,
    nothing="no point succeeded with check=true",
)

if __name__ == "__main__":
    DRAWING.again()
