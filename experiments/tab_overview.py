"""The paper's table 1 (TPI-LLM): seven models on eight emulated devices, with a window and without.

What it cannot be asked is swept: the rate of its disks and the length of its prompt are not
published. The disk rate that serves all rows best is a fit, shown with its residuals, beside the
rate that each row alone would need; where these differ, no single rate is the paper's. Run it with
`python -m tpi_bench +experiment=tab_overview`; draw it again with `python -m
experiments.tab_overview FOLDER`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.tab_memory import PAPER_UNIT_GB
from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_ROWS = Path(__file__).parent / "paper" / "table1_overview.csv"
_STEPS = 400  # of the disk rate, between the swept ones, in which the fit is searched


def table(rows: pd.DataFrame) -> str:
    """A line a point beside the paper's; then the fit and what each row alone would need."""
    shown = rows.assign(
        **{
            "disk GB/s": rows.disk_gb_per_s.where(rows.scheduler == "on"),
            "token s": rows.token_latency_s,
            "paper token s": rows.paper_token_s,
            "token ratio": rows.token_latency_s / rows.paper_token_s,
            "TTFT s": rows.ttft_s,
            "paper TTFT s": rows.paper_ttft_s,
            "GB a device": rows.ledger_bytes / 1e9,
            "paper GB": rows.paper_gb * PAPER_UNIT_GB,
        }
    )
    columns = ["model", "scheduler", "disk GB/s", "prompt_tokens", "token s", "paper token s"]
    columns += ["token ratio", "TTFT s", "paper TTFT s", "GB a device", "paper GB", "status"]
    text = shown[columns].round(2).to_string(index=False, na_rep="-")
    return "\n".join([text, *_fit_text(rows)])


def fit(rows: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """The disk rate (GB/s) with the least sum of squared log ratios to the paper, with its rows.

    A row a model with the window: token latency at that rate (a straight line between swept rates
    in log-log), the paper's, their ratio, and the rate that this row alone would need; NaN where
    no swept rate gives the paper's latency.
    """
    import pandas as pd

    own = _with_window(rows)
    own = own[own.paper_token_s.notna()]
    low, high = own.disk_gb_per_s.min(), own.disk_gb_per_s.max()
    rates = np.geomspace(low, high, _STEPS)
    lines = {
        model: _between(group, rates)
        for model, group in own.groupby("model", sort=False)
        if len(group) > 1
    }
    if not lines:
        return float("nan"), pd.DataFrame(columns=["model", "ours", "paper", "ratio", "own_rate"])
    paper = own.groupby("model").paper_token_s.first()
    logs = np.array([np.log(times / paper[model]) for model, times in lines.items()])
    best = int(np.argmin((logs**2).sum(axis=0)))
    found = [
        {
            "model": model,
            "ours": times[best],
            "paper": paper[model],
            "ratio": times[best] / paper[model],
            "own_rate": _needed(rates, times, paper[model]),
        }
        for model, times in lines.items()
    ]
    return float(rates[best]), pd.DataFrame(found)


def _between(group: pd.DataFrame, rates: np.ndarray) -> np.ndarray:
    """Token latency at each rate."""
    own = group.sort_values("disk_gb_per_s")
    times = np.log(own.token_latency_s.to_numpy())
    return np.exp(np.interp(np.log(rates), np.log(own.disk_gb_per_s.to_numpy()), times))


def _needed(rates: np.ndarray, times: np.ndarray, wanted: float) -> float:
    """The lowest rate at which it takes no longer than `wanted`."""
    enough = rates[times <= wanted]
    return float(enough[0]) if 0 < len(enough) < len(rates) else float("nan")


def _fit_text(rows: pd.DataFrame) -> list[str]:
    rate, found = fit(rows)
    if found.empty:
        return []
    lines = [
        f"fit: {rate:.2f} GB/s a disk serves the rows with a window best (least squares of log "
        "ratios); what is left:"
    ]
    for row in found.itertuples():
        alone = f"{row.own_rate:.2f} GB/s" if row.own_rate == row.own_rate else "none that is swept"
        lines.append(
            f"  {row.model}: {row.ours:.2f} s, paper {row.paper:.2f}, ratio {row.ratio:.2f}; "
            f"alone it would need {alone}"
        )
    needed = found.own_rate.dropna()
    if len(needed) > 1 and needed.max() > 1.1 * needed.min():
        lines.append(
            f"no single rate gives the paper's table: its rows need {needed.min():.2f} to "
            f"{needed.max():.2f} GB/s"
        )
    off = rows[(rows.scheduler == "off") & rows.paper_token_s.notna() & (rows.status == "ok")]
    if len(off):
        ratio = off.token_latency_s / off.paper_token_s
        lines.append(
            f"without a window, where no disk takes part: {ratio.min():.2f} to {ratio.max():.2f} "
            "of the paper's token latency"
        )
    return lines


def _with_window(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one prompt length, with every disk rate."""
    own = rows[(rows.scheduler == "on") & (rows.status == "ok")]
    lengths = own.groupby("prompt_tokens").disk_gb_per_s.nunique()
    return own[own.prompt_tokens == lengths.idxmax()] if len(own) else own


def draw(rows: pd.DataFrame) -> Figure:
    """Ratios to the paper: token latency by disk rate and without a window, TTFT by prompt."""
    figure = figures.new_figure(3.1, num_columns=2)
    by_rate, off, by_prompt = figure.subplots(1, 3, width_ratios=[5, 4, 4])
    models = list(rows.sort_values("limit_memory_s").model.drop_duplicates())
    colours = looks.shades(models)
    good = rows[(rows.status == "ok") & rows.paper_token_s.notna()]
    own = _with_window(good)
    prompts = good[(good.scheduler == "on") & good.paper_ttft_s.notna()]
    prompts = prompts[prompts.disk_gb_per_s == _most_swept(prompts)]
    for model, marker in figures.with_markers(models):
        line = own[own.model == model].sort_values("disk_gb_per_s")
        style = {"color": colours[model], "marker": marker}
        by_rate.plot(
            line.disk_gb_per_s,
            line.token_latency_s / line.paper_token_s,
            label=names.model_name(model),
            **style,
        )
        lengths = prompts[prompts.model == model].sort_values("prompt_tokens")
        by_prompt.plot(
            lengths.prompt_tokens,
            lengths.ttft_s / lengths.paper_ttft_s,
            label=names.model_name(model),
            **style,
        )
        alone = good[(good.model == model) & (good.scheduler == "off")]
        off.plot(
            [names.model_name(model)] * len(alone),
            alone.token_latency_s / alone.paper_token_s,
            linestyle="",
            **style,
        )
    rate = fit(rows)[0]
    if rate == rate:
        by_rate.axvline(rate, color="0.4", linestyle=":", linewidth=0.8)
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        by_rate.annotate(f"fit {rate:.2f}", (rate, 0.9), xytext=(3, 0), fontsize=6, **place)
    _ratio_axis(by_rate, "disk (GB/s), window of two", "token latency over the paper's")
    _ratio_axis(off, "without a window, where it fits", "")
    swept = f"prompt (tokens),\nwindow of two, {_most_swept(prompts):g} GB/s"
    _ratio_axis(by_prompt, swept, "TTFT over the paper's")
    for axes, column, values in (
        (by_rate, "disk_gb_per_s", own),
        (by_prompt, "prompt_tokens", prompts),
    ):
        if len(values):
            figures.log_values(axes, values[column])
    off.tick_params(axis="x", labelrotation=60, labelsize=6.5)
    figure.legend(*figures.handles_of([by_rate]), loc="outside lower center", ncol=4, frameon=False)
    first = rows.iloc[0]
    figure.suptitle(
        f"TPI-LLM's table 1: {names.device_name(first.device)}, virtual time; "
        "disks and prompt are not published",
        fontsize=7.5,
    )
    return figure


def _most_swept(rows: pd.DataFrame) -> float:
    """The disk rate at which prompts are swept."""
    lengths = rows.groupby("disk_gb_per_s").prompt_tokens.nunique()
    return float(lengths.idxmax()) if len(lengths) else float("nan")


def _ratio_axis(axes: Axes, x_label: str, y_label: str) -> None:
    axes.axhline(1.0, color="0.3", linewidth=0.7)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label, fontsize=7)
    axes.set_ylim(bottom=0)


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows, if any is ok, with `scheduler`, `disk_gb_per_s` and the paper's numbers."""
    if not (runs.status == "ok").any():
        return runs[:0]
    rows = runs.copy()
    rows["scheduler"] = ["on" if name == "2" else "off" for name in rows.system_window]
    rows["disk_gb_per_s"] = (rows.disk_bps / 1e9).round(3)
    return rows.merge(paper_overview(), on=["model", "scheduler"], how="left")


def paper_overview() -> pd.DataFrame:
    """The paper's table 1: by `model` and `scheduler` (its window of two, on or off), in s and GB;
    NaN where it ran out of memory.
    """
    import pandas as pd

    return pd.read_csv(PAPER_ROWS, na_values="OOM").rename(
        columns={
            "ttft_s": "paper_ttft_s",
            "token_latency_s": "paper_token_s",
            "peak_memory_gb": "paper_gb",
        }
    )


DRAWING = Drawing(
    name="tab_overview",
    rows=_rows,
    table=table,
    draw=draw,
)

if __name__ == "__main__":
    DRAWING.again()
