"""The paper's case study (TPI-LLM, tables 3, 7 and 8): laptops alone, and together over Wi-Fi.

Claim 2 of the paper against numbers: 80 % less TTFT and token latency than Accelerate, 90 % less
than Transformers. Virtual rows are at the paper's scale and have its numbers beside them, those in
fp32, and what a layer takes beside its section 3.3; with quantised weights they say what is left of
it. Mapped files and blocking reads stand there for the libraries, and are called stand-ins.
Measured rows are real libraries and processes at a scale this host carries. Run it with `python -m
tpi_bench +experiment=tab_case_study`; draw it again with `python -m experiments.tab_case_study
FOLDER`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_ROWS = Path(__file__).parent / "paper" / "table3_table8_case_study.csv"
# Who stands for whom where a real library knows no virtual time.
_STANDS_FOR = {"mmap": "transformers", "blocking": "accelerate"}
_SHOWN_FOR = {"mmap": "Transformers, in 8 and 4 bit llama.cpp", "blocking": "Accelerate"}
# A layer of Llama 2-7B on four laptops, window of four: the paper's section 3.3, in s.
_PAPER_MODEL, _PAPER_DEVICES = "llama2_7b", 4
_PAPER_LAYER_S = {"compute": 0.011 + 0.017, "links": 2 * 0.014, "disk": 0.018 + 0.030}
_NUM_LAYERS = 32
_QUANTISED = ("q8", "q4")  # which Transformers and Accelerate do not run
_LAPTOPS = "laptops of the paper, virtual time"
_TTFT = "ttft"  # a panel


def table(rows: pd.DataFrame) -> str:
    """One line a case: TTFT and token latency here, and the paper's where it has the case."""
    import pandas as pd

    lines = []
    all_prompts, rows = rows, rows[rows.is_usual_prompt]
    keys = ["clock", "weights", "model", "line"]
    for (clock, weights, model, label), group in rows.groupby(keys, sort=False):
        good, first = group[group.status == "ok"], group.iloc[0]
        line = {"clock": clock, "weights": weights, "model": model, "system": label}
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
    return "\n".join([text, *_layer(rows), *_by_prompt(all_prompts), *_savings(rows)])


def _by_prompt(rows: pd.DataFrame) -> list[str]:
    """TTFT where prompts of several lengths were run."""
    lines = []
    keys = ["clock", "weights", "model", "line"]
    for (_, _, model, label), group in rows[rows.status == "ok"].groupby(keys, sort=False):
        times = group.groupby("prompt_tokens").ttft_s.median()
        if len(times) > 1:
            words = ", ".join(f"{count:.0f} tokens {time:.1f} s" for count, time in times.items())
            paper = group.paper_ttft_s.iloc[0]
            lines.append(f"TTFT of {model}, {label}, by prompt: {words}; the paper's {paper:g} s")
    return lines


def _layer(rows: pd.DataFrame) -> list[str]:
    """What a layer takes here and in the paper, and what the paper's would make of a token."""
    own = rows[(rows.clock == "virtual") & (rows.weights == "float32") & (rows.status == "ok")]
    own = own[(own.model == _PAPER_MODEL) & (own.num_devices == _PAPER_DEVICES)]
    if own.empty:
        return []
    row = own.iloc[0]
    ours = {
        "compute": row.compute_share * row.token_latency_s / _NUM_LAYERS,
        "links": row.sync_share * row.token_latency_s / _NUM_LAYERS,
        "disk": row.limit_disk_s / _NUM_LAYERS,  # of the laptop whose disk takes longest
    }
    words = "; ".join(
        f"{name} {time * 1e3:.1f} ms (paper's section 3.3: {_PAPER_LAYER_S[name] * 1e3:.0f})"
        for name, time in ours.items()
    )
    in_turn = _PAPER_LAYER_S["compute"] + _PAPER_LAYER_S["links"]
    token_s = max(in_turn, _PAPER_LAYER_S["disk"]) * _NUM_LAYERS
    return [
        f"a layer of {_PAPER_MODEL} on four laptops, waits for others in links: {words}",
        f"the paper's layers would make a token of {token_s:.1f} s; its table 3 has "
        f"{row.paper_token_latency_s:g} s, and here it is {row.token_latency_s:.1f} s, of which "
        f"the slowest disk alone takes {row.limit_disk_s:.1f}",
    ]


def _savings(rows: pd.DataFrame) -> list[str]:
    """The claim in a line each: how much less token latency tpi has than what stands alone.

    With quantised weights a laptop alone is no claim of the paper's: then who is fastest.
    """
    lines = []
    keys = ["clock", "weights", "model"]
    for (clock, weights, model), group in rows[rows.status == "ok"].groupby(keys, sort=False):
        median = group.groupby("line", sort=False).token_latency_s.median()
        where = f"{clock}, {model} in {weights}"
        if weights in _QUANTISED:
            ranked = [f"{label} {time:.2f} s" for label, time in median.sort_values().items()]
            lines.append(f"{where}: {'; '.join(ranked)}")
            continue
        ours = median[[label for label in median.index if label.startswith("tpi")]].min()
        parts = [
            f"{1 - ours / time:.0%} less than {label}"
            for label, time in median.items()
            if not str(label).startswith("tpi")
        ]
        if parts and ours == ours:
            lines.append(f"{where}: tpi takes {', '.join(parts)}")
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """Token latency of each case: here, and as published. A panel a clock and precision.

    Of what the paper has, TTFT too.
    """
    rows = rows[(rows.status == "ok") & rows.is_usual_prompt]
    shown = list(dict.fromkeys(rows.panel))
    first = [panel for panel in shown if not panel.endswith(_QUANTISED)]
    second = [panel for panel in shown if panel.endswith(_QUANTISED)]
    has_paper = rows.paper_ttft_s.notna().any()
    mosaic: list[Any] = [_row_of(own) for own in (first, second) if own]
    if has_paper:
        mosaic.insert(1, [_TTFT] * 12)
    figure = figures.new_figure(0.8 + 1.9 * len(mosaic), num_columns=2)
    places = figure.subplot_mosaic(mosaic)
    lines = list(dict.fromkeys(rows.shown))
    styles = looks.point_styles(lines)
    for panel, axes in places.items():
        own = rows[rows.panel == (first[0] if panel == _TTFT else panel)]
        _draw_points(axes, own, styles, "ttft_s" if panel == _TTFT else "token_latency_s")
        axes.set_title(_title(own), fontsize=7)
        if panel == _TTFT:
            axes.set_ylabel("TTFT (s)")
        elif panel in (first[:1] + second[:1]):
            axes.set_ylabel("token latency (s)")
    axes = places[shown[0]]
    handles: list[Any] = [
        axes.plot([], [], label=line, **style)[0] for line, style in styles.items()
    ]
    (limit,) = axes.plot([], [], marker="_", **looks.LIMIT_TICK, label="physical limit")
    (paper,) = axes.plot([], [], **looks.PAPER, label="the paper's")
    figure.legend(
        handles=[*handles, limit, paper], ncol=3, loc="outside lower center", frameon=False
    )
    return figure


def _row_of(panels: list[str]) -> list[str]:
    """A row of the mosaic, which is 12 wide: measured rows have one model only."""
    if len(panels) == 2 and panels[1] == "wall":
        return [panels[0]] * 9 + [panels[1]] * 3
    return [panel for panel in panels for _ in range(12 // len(panels))]


def _draw_points(
    axes: Axes, rows: pd.DataFrame, styles: dict[str, dict[str, Any]], column: str
) -> None:
    """Side by side, as the axis is logarithmic: a bar would have no beginning."""
    models = list(dict.fromkeys(rows.model))
    lines = [line for line in styles if line in set(rows.shown)]
    width = 0.8 / len(lines)
    for number, line in enumerate(lines):
        shift = (number - (len(lines) - 1) / 2) * width
        for model, group in rows[rows.shown == line].groupby("model", sort=False):
            at = models.index(str(model)) + shift
            times = group[column]
            spread = [[times.median() - times.min()], [times.max() - times.median()]]
            axes.errorbar(at, times.median(), spread, elinewidth=0.6, **styles[line])
            if column == "token_latency_s":
                axes.plot(at, group.limit_token_s.median(), marker="_", **looks.LIMIT_TICK)
            published = group[f"paper_{column}"]
            if published.notna().any():
                axes.plot(at, published.iloc[0], **looks.PAPER)
    for edge in range(1, len(models)):
        axes.axvline(edge - 0.5, color="0.85", linewidth=0.6)
    axes.set_xticks(
        np.arange(len(models)), [names.model_name(model).replace("-", "\n") for model in models]
    )
    axes.set_yscale("log")
    figures.plain_numbers(axes.yaxis)
    axes.grid(False, axis="x")


def _title(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    if first.clock == "wall":
        return "measured, 1.5 GB each"
    if first.weights in _QUANTISED:
        return f"{_LAPTOPS}, {first.weights}"
    return f"{_LAPTOPS}, {names.precision_name(first.weights)}, TPI with a window of four"


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All rows with `case` (as the paper calls it), `line`, `panel`, and the paper's numbers."""
    import pandas as pd

    rows = runs.copy() if (runs.status == "ok").any() else runs[:0].copy()
    rows["is_usual_prompt"] = rows.prompt_tokens == rows.prompt_tokens.mode().max()
    rows["paper_case"] = [_case(row) for row in rows.to_dict("records")]
    rows["case"] = [
        f"{case} (stand-in: {system})" if system in _STANDS_FOR else case
        for case, system in zip(rows.paper_case, rows.system, strict=True)
    ]
    rows["line"] = rows["case"]
    rows["shown"] = [_shown(row) for row in rows.to_dict("records")]
    # Of mapped files no ledger knows; what a group was charged counts them.
    held = rows.peak_cgroup_bytes.fillna(rows.peak_anon_bytes)
    rows["memory_bytes"] = held.fillna(rows.ledger_bytes.where(rows.system != "mmap"))
    paper = pd.read_csv(PAPER_ROWS)
    paper["paper_case"] = [_paper_case(row) for row in paper.to_dict("records")]
    paper = paper.rename(columns=lambda name: f"paper_{name}" if name.endswith("_s") else name)
    columns = ["model", "paper_case", "paper_ttft_s", "paper_token_latency_s"]
    rows = rows.merge(paper[columns], on=["model", "paper_case"], how="left", indicator="found")
    is_papers_way = (rows.clock == "virtual") & ~rows.weights.isin(_QUANTISED)
    rows["is_in_paper"] = (rows.found == "both") & is_papers_way
    published = ["paper_ttft_s", "paper_token_latency_s"]
    rows.loc[~is_papers_way, published] = float("nan")
    rows["panel"] = [
        "wall" if clock == "wall" else f"virtual {weights}"
        for clock, weights in zip(rows.clock, rows.weights, strict=True)
    ]
    keys = rows.assign(is_quantised=rows.weights.isin(_QUANTISED))
    for column in ("panel", "model", "case"):
        found = list(dict.fromkeys(keys[column]))
        keys[f"{column}_order"] = keys[column].map(found.index)
    order = ["is_quantised", "clock", "panel_order", "model_order", "case_order", "repeat"]
    return keys.sort_values(order, kind="stable")


def _case(row: dict) -> str:
    """As the paper calls it; with quantised weights mapped files are llama.cpp's way."""
    is_quantised = row["weights"] in _QUANTISED
    system = "llama.cpp" if is_quantised and row["system"] == "mmap" else row["system"]
    system = _STANDS_FOR.get(system, system)
    if system == "tpi" and row["num_devices"] == 1 and not is_quantised:
        return "transformers + scheduler"
    if system in ("tpi", "pipeline"):
        return f"{system}, {row['num_devices']} device{'s' * int(row['num_devices'] > 1)}"
    return system


def _shown(row: dict) -> str:
    """As in the legend: the system, how many of it, and whom it stands for."""
    devices = "alone" if row["num_devices"] == 1 else f"{row['num_devices']} devices"
    for_whom = _SHOWN_FOR.get(row["system"]) if row["clock"] == "virtual" else None
    return f"{row['label']}, {devices}" + (f" (stands for {for_whom})" if for_whom else "")


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
