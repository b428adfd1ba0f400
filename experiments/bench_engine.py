"""How fast is the engine at each precision, beside its limit and the libraries that are installed?

One run, in turns: each point's limit is measured right before it with as many threads, and what is
compared runs one after the other in every repeat. A figure is the median token of a run (of a
prompt: TTFT), and of runs the median with the range; ratios are those of pairs. An allreduce is
held against a round trip of its payload between two plain processes, and timed with others before
and behind it, as a token has it. What of a token is not weights is told by `system=products`, which
multiplies the same matrices and does nothing else.

Run it with `make bench` or `python -m tpi_bench +experiment=bench_engine`; draw it again with
`python -m experiments.bench_engine FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.bench_lines import (
    DEMO,
    LEAST_SHARE,
    MOST_BESIDE_WEIGHTS,
    PRECISIONS,
    SHAPE,
    Line,
    figures_of,
    lines,
    points,
)
from tpi_bench.report import figures, looks
from tpi_bench.report.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PARTS = ("products", "other computing", "sampling", "messages", "between spans")
_PART_COLOURS = [looks.TIMES[k] for k in ("compute", "reads", "sampling", "links", "waits")]
_VERDICTS = {True: "yes", False: "NO", None: "-"}


def table(rows: pd.DataFrame) -> str:
    """A line a figure: beside its limit and its peer, what is asked, and whether that is so.

    Asked is a share of the limit's speed at least, and of the peer's time at most.
    """
    import pandas as pd

    found = lines(rows)
    text = pd.DataFrame([_cells(line) for line in found]).to_string(index=False)
    asked = "asked: of the limit's speed at least, of the time of what stands beside it at most"
    parts = [
        text,
        asked,
        *_account_text(rows),
        *_circumstances(rows),
        *_missing(found),
        _verdict(found),
    ]
    return "\n".join(parts)


def _cells(line: Line) -> dict[str, str]:
    return {
        "figure": line.name,
        "ms": _spread(line.ours * 1e3),
        "limit ms": _middle(line.limit[line.limit > 0] * 1e3),
        "of limit": _spread(line.share, "{:.0%}"),
        "beside": line.peer_name or "-",
        "its ms": _middle(line.peer * 1e3),
        "ratio": _spread(line.ratio, "{:.2f}"),
        "asked": line.asked or "-",
        "met": _VERDICTS[line.is_met],
    }


def _spread(values: pd.Series, pattern: str | None = None) -> str:
    """With the range where there are several."""
    if len(values) < 2:
        return _middle(values, pattern)
    return figures.median_and_range(values, pattern or _pattern(values))


def _middle(values: pd.Series, pattern: str | None = None) -> str:
    return "-" if values.empty else (pattern or _pattern(values)).format(values.median())


def _pattern(values: pd.Series) -> str:
    """Three digits or so."""
    value = values.median()
    return "{:.0f}" if value >= 100 else "{:.1f}" if value >= 10 else "{:.3f}"


def account(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of a token of the demo model on one device, a row a precision.

    Its products alone take the first; spans that compute take more than that, and those of
    sampling and messages are their own. The rest, Python between spans, is no span's.
    """
    import pandas as pd

    found = {}
    for line in lines(rows):
        if line.kind == "account" and len(line.ratio):
            wanted = {"system": "tpi", "weights": line.weights, "num_devices": 1}
            own = points(rows, model=DEMO, status="ok", **wanted)
            products = (1 / line.ratio).median()
            computing, sampling, sync, between = (
                own[f"{kind}_share"].median()
                for kind in ("compute", "sampling", "sync", "unexplained")
            )
            shares = (products, computing - products, sampling, sync, between)
            found[PRECISIONS[line.weights]] = dict(zip(_PARTS, shares, strict=True))
    return pd.DataFrame.from_dict(found, orient="index", columns=list(_PARTS))


def _account_text(rows: pd.DataFrame) -> list[str]:
    shares = account(rows)
    if shares.empty:
        return []
    shown = shares.map("{:.0%}".format).to_string()
    asked = f"what is not products is to be under {MOST_BESIDE_WEIGHTS:.0%} in fp32"
    return [f"a token of the demo model on one device ({asked}):", shown]


def _circumstances(rows: pd.DataFrame) -> list[str]:
    """Bandwidths that the limits were made with, and which kernels ran."""
    own = points(rows, model=SHAPE, system="tpi", status="ok")
    alone = own[own.num_devices == 1]
    memory = [
        f"{_threads(threads)} {_spread(group.memory_bps / 1e9, '{:.0f}')}"
        for threads, group in alone.groupby("threads_per_device")
    ]
    kernels = [
        f"{short} {', '.join(sorted(set(alone.kernel[alone.weights == weights].dropna())))}"
        for weights, short in PRECISIONS.items()
        if (alone.weights == weights).any()
    ]
    return [f"memory, GB/s: {'; '.join(memory)}", f"kernels: {'; '.join(kernels)}"]


def _threads(count: Any) -> str:
    return f"{count:.0f} thread{'s' if count > 1 else ''}"


def _missing(found: list[Line]) -> list[str]:
    reasons = {line.peer_name: line.reason for line in found if line.reason}
    return [f"without {name}: {reason}" for name, reason in reasons.items()]


def _verdict(found: list[Line]) -> str:
    judged = [line for line in found if line.is_met is not None]
    short = [line.name for line in judged if not line.is_met]
    text = f"{len(judged) - len(short)} of {len(judged)} figures are as asked"
    return text + (f"; not: {', '.join(short)}" if short else "")


def draw(rows: pd.DataFrame) -> Figure:
    """Bandwidth reached, time beside the peers', and where the demo model's token goes."""
    figure = figures.new_figure(3.4, num_columns=2)
    panels = figure.subplots(1, 3, width_ratios=[4, 5, 3])
    _draw_shares(panels[0], rows)
    _draw_ratios(panels[1], lines(rows))
    _draw_account(panels[2], account(rows))
    for axes in panels:
        axes.grid(False, axis="x")
    return figure


def _draw_shares(axes: Axes, rows: pd.DataFrame) -> None:
    """Limit over time by precision; of libraries too, each by its own bytes."""
    shape = points(rows, model=SHAPE, num_devices=1)
    kinds = [("tpi", threads) for threads in sorted(shape.threads_per_device.dropna().unique())]
    kinds = [*reversed(kinds), ("llamacpp", None), ("transformers", None)]
    names = {"tpi": "TPI star", "llamacpp": "llama.cpp", "transformers": "Transformers"}
    labels = [names[s] + (f", {_threads(t)}" if t else "") for s, t in kinds]
    for number, ((system, threads), label) in enumerate(zip(kinds, labels, strict=True)):
        look = looks.look_of("TPI star" if system == "tpi" else label)
        fill = "none" if threads == 1 else "full"
        own = points(shape, system=system, **({"threads_per_device": threads} if threads else {}))
        for place, weights in enumerate(PRECISIONS):
            group = points(own, weights=weights)
            limit = figures_of(group, "limit_token_s")
            share = (limit[limit > 0] / figures_of(group)).dropna()
            at = place + (number - (len(kinds) - 1) / 2) * 0.18
            _mark(axes, at, share, color=look.colour, fmt=look.marker, fillstyle=fill)
        axes.plot([], [], look.marker, color=look.colour, fillstyle=fill, label=label)
    axes.axhline(1.0, **looks.LIMIT, label="physical limit")
    axes.axhline(LEAST_SHARE, color="k", linewidth=0.7, label="asked in fp32")
    axes.set_xticks(range(len(PRECISIONS)), PRECISIONS.values())
    axes.set_ylim(0, 1.15)
    axes.set_ylabel("share of memory bandwidth, decode")
    _legend(axes)


def _draw_ratios(axes: Axes, found: list[Line]) -> None:
    """Our time over theirs; a tick is what is asked."""
    shown = [line for line in found if line.kind == "decode" or line.kind.startswith("prefill")]
    groups = list(dict.fromkeys(_group(line) for line in shown))
    colours = looks.shades(list(PRECISIONS.values()))
    for line in shown:
        order = list(PRECISIONS).index(line.weights)
        at = groups.index(_group(line)) + (order - 2) * 0.15
        _mark(axes, at, line.ratio, color=colours[PRECISIONS[line.weights]], fmt="o")
        if line.most == line.most:
            axes.plot([at - 0.07, at + 0.07], [line.most] * 2, color="k", linewidth=1.0)
    for short in PRECISIONS.values():
        axes.plot([], [], "o", color=colours[short], label=short)
    axes.plot([], [], "_", color="k", label="asked")
    axes.axhline(1.0, color="0.3", linewidth=0.7)
    axes.set_xticks(range(len(groups)), groups, fontsize=6)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("time over the peer's")
    _legend(axes, num_columns=3)


def _group(line: Line) -> str:
    words = f"{line.kind}\nbeside\n{line.peer_name.split()[0]}"
    return words.replace(" ", "\n").replace("Transformers", "Trans-\nformers")


def _mark(axes: Axes, at: float, values: pd.Series, **style: Any) -> None:
    """The median with the range."""
    if len(values):
        middle = values.median()
        spread = [[middle - values.min()], [values.max() - middle]]
        axes.errorbar([at], [middle], spread, capsize=1.5, markersize=4, **style)


def _draw_account(axes: Axes, shares: pd.DataFrame) -> None:
    colours = dict(zip(_PARTS, _PART_COLOURS, strict=True))
    bottom = np.zeros(len(shares))
    for part in _PARTS:
        heights = shares[part].fillna(0.0).clip(lower=0.0).to_numpy(dtype=float)
        axes.bar(shares.index, heights, bottom=bottom, color=colours[part], label=part, linewidth=0)
        bottom += heights
    axes.axhline(1 - MOST_BESIDE_WEIGHTS, color="k", linewidth=0.7, label="asked in fp32: above")
    axes.set_ylim(0, 1.15)
    axes.set_ylabel("share of a token, demo model")
    if len(shares):
        _legend(axes)


def _legend(axes: Axes, num_columns: int = 2) -> None:
    """Below its panel."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.27),
        ncol=num_columns,
        fontsize=6,
        frameon=False,
        columnspacing=0.8,
    )


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """All, if a line can be made of them: peers that failed say why."""
    return runs if lines(runs) else runs[:0]


DRAWING = Drawing(name="bench_engine", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
