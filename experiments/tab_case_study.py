"""The paper's case study (TPI-LLM, tables 3, 7 and 8): laptops alone, and together over Wi-Fi.

Claim 2 of the paper against numbers: 80 % less TTFT and token latency than Accelerate, 90 % less
than Transformers. Virtual rows are at the paper's scale and have its numbers beside them; measured
rows are real libraries and processes at a scale this host carries. Run it with `python -m tpi_bench
+experiment=tab_case_study`; draw it again with `python -m experiments.tab_case_study FOLDER`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tpi_bench.report import figures
from tpi_bench.report.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PAPER_ROWS = Path(__file__).with_name("paper_table3.csv")
# Who stands for whom where a real library knows no virtual time.
_STANDS_FOR = {"mmap": "transformers", "blocking": "accelerate"}
_TITLES = {
    "virtual": "laptops of the paper, virtual time (mmap and blocking for the libraries)",
    "wall": "measured here",
}


def table(rows: pd.DataFrame) -> str:
    """One line a case: TTFT and token latency here, and the paper's where it has the case."""
    import pandas as pd

    lines = []
    for (clock, model, label), group in rows.groupby(["clock", "model", "line"], sort=False):
        good, first = group[group.status == "ok"], group.iloc[0]
        line = {"clock": clock, "model": model, "system": label}
        line |= {
            "token s": _seconds(good.token_latency_s) if len(good) else first.status,
            "TTFT s": _seconds(good.ttft_s) if len(good) else "-",
            "limit s": _seconds(good.limit_token_s) if len(good) else "-",
            "GB a device": f"{group.memory_bytes.max() / 1e9:.2f}".replace("nan", "-"),
        }
        if first.is_in_paper:
            line |= {"paper token s": _published(first.paper_token_latency_s)}
            line |= {"paper TTFT s": _published(first.paper_ttft_s)}
        lines.append(line)
    text = pd.DataFrame(lines).fillna("-").to_string(index=False)
    return "\n".join([text, *_savings(rows)])


def _savings(rows: pd.DataFrame) -> list[str]:
    """The claim in a line each: how much less token latency tpi has than what stands alone."""
    lines = []
    for (clock, model), group in rows[rows.status == "ok"].groupby(["clock", "model"], sort=False):
        median = group.groupby("line", sort=False).token_latency_s.median()
        ours = median[[label for label in median.index if label.startswith("tpi")]].min()
        parts = [
            f"{1 - ours / time:.0%} less than {label}"
            for label, time in median.items()
            if not str(label).startswith("tpi")
        ]
        if parts and ours == ours:
            lines.append(f"{clock}, {model}: tpi takes {', '.join(parts)}")
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """Token latency of each case: here, and as published. Virtual and measured side by side."""
    rows = rows[rows.status == "ok"]
    clocks = [clock for clock in ("virtual", "wall") if (rows.clock == clock).any()]
    figure = figures.new_figure(2.6, num_columns=2)
    panels = figure.subplots(
        1, len(clocks), squeeze=False, width_ratios=[3 if c == "virtual" else 1 for c in clocks]
    )[0]
    cases = list(dict.fromkeys(rows.case))
    colours = figures.palette(cases)
    for axes, clock in zip(panels, clocks, strict=True):
        own = rows[rows.clock == clock]
        models = list(dict.fromkeys(own.model))
        for number, case in enumerate(cases):
            shift = (number - (len(cases) - 1) / 2) * 0.8 / len(cases)
            line = own[own.case == case].groupby("model", sort=False)
            for model, group in line:
                at = models.index(str(model)) + shift
                token = group.token_latency_s
                spread = [[token.median() - token.min()], [token.max() - token.median()]]
                axes.bar(at, token.median(), 0.8 / len(cases), color=colours[case], linewidth=0)
                axes.errorbar(at, token.median(), spread, color="0.25", linewidth=0.6)
                axes.plot(at, group.limit_token_s.median(), "_", color="k", markersize=5)
                if group.paper_token_latency_s.notna().any():
                    axes.plot(at, group.paper_token_latency_s.iloc[0], "kx", markersize=3.5)
        axes.set_xticks(np.arange(len(models)), models)
        axes.set_yscale("log")
        figures.plain_numbers(axes.yaxis)
        axes.grid(False, axis="x")
        title = _TITLES[clock]
        axes.set_title(title, fontsize=7.5)
    panels[0].set_ylabel("token latency (s)")
    handles = [panels[0].bar([0], [np.nan], color=colours[case], label=case) for case in cases]
    (limit,) = panels[0].plot([], [], "_k", label="physical limit")
    (paper,) = panels[0].plot([], [], "xk", markersize=3.5, label="the paper's")
    figure.legend(
        handles=[*handles, limit, paper], ncol=4, loc="outside lower center", frameon=False
    )
    return figure


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows with `case` (as the paper calls it), `line`, and the paper's numbers."""
    import pandas as pd

    rows = runs.copy() if (runs.status == "ok").any() else runs[:0].copy()
    rows["case"] = [_case(row) for row in rows.to_dict("records")]
    rows["line"] = [
        f"{case} (as {system})" if system in _STANDS_FOR else case
        for case, system in zip(rows.case, rows.system, strict=True)
    ]
    # Of mapped files no ledger knows; what a group was charged counts them.
    held = rows.peak_cgroup_bytes.fillna(rows.peak_anon_bytes)
    rows["memory_bytes"] = held.fillna(rows.ledger_bytes.where(rows.system != "mmap"))
    paper = pd.read_csv(PAPER_ROWS)
    paper["case"] = [_paper_case(row) for row in paper.to_dict("records")]
    paper = paper.rename(columns=lambda name: f"paper_{name}" if name.endswith("_s") else name)
    columns = ["model", "case", "paper_ttft_s", "paper_token_latency_s"]
    rows = rows.merge(paper[columns], on=["model", "case"], how="left", indicator="found")
    rows["is_in_paper"] = (rows.found == "both") & (rows.clock == "virtual")
    order = {case: i for i, case in enumerate(dict.fromkeys(rows.case))}
    models = {model: i for i, model in enumerate(dict.fromkeys(rows.model))}
    keys = rows.assign(a=rows.clock, b=rows.model.map(models), c=rows.case.map(order))
    return keys.sort_values(["a", "b", "c", "repeat"], kind="stable")


def _case(row: dict) -> str:
    system = _STANDS_FOR.get(row["system"], row["system"])
    if system == "tpi":
        few = row["num_devices"] == 1
        return "transformers + scheduler" if few else f"tpi, {row['num_devices']} devices"
    return system


def _paper_case(row: dict) -> str:
    return f"tpi, {row['num_devices']} devices" if row["system"] == "tpi" else row["system"]


def _seconds(values: pd.Series) -> str:
    if len(values) == 1:
        return f"{values.iloc[0]:.2f}"
    return figures.median_and_range(values, "{:.2f}")


def _published(seconds: float) -> str:
    return f"{seconds:g}" if seconds == seconds else "oom"


DRAWING = Drawing(
    name="tab_case_study",
    rows=_rows,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
