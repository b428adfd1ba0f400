"""Where does a token's time go? One token of each system, on every device, from its spans.

The last token of each run, from the master's embedding to its next: what a device computes, what it
sends and receives or waits for, what it waits for from its disk, and what its disk reads meanwhile.
Page faults of mapped files are within a computation. Run it with `python -m tpi_bench
+experiment=fig_token`; draw it again with `python -m experiments.fig_token FOLDER`. The same on
real devices: `testbed=processes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIRST = "embed"  # of a token, on the master
_KINDS = {
    "compute": "computes",
    "sampling": "samples",
    "sync": "sends, receives, waits for others",
    "load_wait": "waits for its disk",
    "read": "disk reads",
}
_PARTS = {
    "compute": "compute",
    "sampling": "sampling",
    "sync": "waits",
    "load_wait": "loads",
    "read": "reads",
}
_IN_BACKGROUND = "read"


def last_tokens(runs: pd.DataFrame, spans: pd.DataFrame) -> pd.DataFrame:
    """The run table with the spans of the last token of each point.

    `token` is their table, cut at the token's ends, times in seconds from its start; None of a
    point without two tokens.
    """
    parts = dict(list(spans.groupby("point", sort=False)))
    return runs.assign(token=[_last_token(parts.get(point)) for point in runs.point])


def _last_token(spans: pd.DataFrame | None) -> pd.DataFrame | None:
    if spans is None:
        return None
    starts = sorted(spans[(spans["rank"] == 0) & (spans.key == _FIRST)].start_ns)
    if len(starts) < 2:
        return None
    begin, end = starts[-2:]
    own = spans[(spans.end_ns > begin) & (spans.start_ns < end)]
    return own.assign(
        start_s=(own.start_ns.clip(lower=begin) - begin) / 1e9,
        end_s=(own.end_ns.clip(upper=end) - begin) / 1e9,
        token_s=(end - begin) / 1e9,
    )


def table(rows: pd.DataFrame) -> str:
    """A line a system: shares of a token by kind, on the master and on the mean of the others."""
    import pandas as pd

    return pd.DataFrame(list(_lines(rows))).to_string(index=False)


def _lines(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for row in rows.to_dict("records"):
        token = row["token"]
        length = token.token_s.iloc[0]
        groups = token.groupby(["rank", "kind"])[["start_s", "end_s"]]
        took = groups.apply(_covered) / length
        shares = took.unstack(fill_value=0.0).reindex(columns=list(_KINDS), fill_value=0.0)
        yield {
            "system": row["line"],
            "token ms": f"{length * 1e3:.4g}",
            **{_KINDS[kind]: _both(shares[kind]) for kind in _KINDS},
            "GB held": f"{row['ledger_bytes'] / 1e9:.2f}",
        }


def _covered(spans: pd.DataFrame) -> float:
    """Seconds in which there is any: reads overlap each other."""
    total, until = 0.0, 0.0
    for start, end in sorted(zip(spans.start_s, spans.end_s, strict=True)):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _both(shares: pd.Series) -> str:
    others = shares.drop(0, errors="ignore")
    return f"{shares.get(0, 0.0):.0%}" + (f", {others.mean():.0%}" if len(others) else "")


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a system, a track a device; reads of its disk are thin, below it."""
    colours = {kind: looks.TIMES[part] for kind, part in _PARTS.items()}
    height = 0.35 + 0.22 * rows.num_devices.max()
    num_rows = -(-len(rows) // 2)
    figure = figures.new_figure(height * num_rows + 0.6, num_columns=2)
    panels = figure.subplots(num_rows, 2, squeeze=False).flatten()
    for row, axes in zip(rows.to_dict("records"), panels, strict=False):
        _draw_token(axes, row["token"], colours)
        axes.set_title(row["line"], fontsize=7.5)
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(rows) - 2) : len(rows)]:
        axes.set_xlabel("time of a token (ms)")
    for axes in panels[::2]:
        axes.set_ylabel("device")
    first = rows.iloc[0]
    words = f"{names.model_name(first.model)}, {names.precision_name(first.weights)}, "
    words += f"{first.num_devices:.0f} devices, {first.topology}, "
    words += f"{first.link_latency_ms:g} ms a hop; {first.clock} clock"
    figure.suptitle(words, fontsize=7.5)
    handles = [figures.patch(colours[kind], words) for kind, words in _KINDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncol=5, frameon=False)
    return figure


def _draw_token(axes: Axes, token: pd.DataFrame, colours: dict[str, Any]) -> None:
    for (rank, kind), own in token.groupby(["rank", "kind"]):
        bars = list(zip(own.start_s * 1e3, (own.end_s - own.start_s) * 1e3, strict=True))
        place = (rank + 0.28, 0.14) if kind == _IN_BACKGROUND else (rank - 0.3, 0.55)
        label = f"device {rank} {_KINDS[kind]}"  # which a page tells
        axes.broken_barh(bars, place, color=colours[kind], linewidth=0, label=label)
    devices = sorted(token["rank"].unique())
    axes.set_yticks(devices, [f"{rank}" for rank in devices])
    axes.set_ylim(max(devices) + 0.5, -0.5)
    axes.set_xlim(0, token.token_s.iloc[0] * 1e3)
    axes.grid(False)


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    rows = succeeded(runs)
    rows["line"] = names.labels(rows)
    return rows[rows.token.notna()]


DRAWING = Drawing(
    name="fig_token",
    rows=_rows,
    table=table,
    draw=draw,
    of_spans=last_tokens,
    nothing="no point succeeded with two tokens",
)

if __name__ == "__main__":
    DRAWING.again()
