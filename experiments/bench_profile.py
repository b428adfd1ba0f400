"""Where does the time of a token go that is more than its limit?

Four accounts, each against the same run's own figures. Matrix by matrix: bytes over time of every
shape that a token is multiplied with, beside the memory bandwidth that was probed for the point,
and beside the whole token. Rows of a prompt: the products again with 32 to 512 vectors; a straight
line through them parts what a matrix costs once from what each row costs. The same taken apart:
fp32 weights tile by tile, as 8- and 4-bit ones are multiplied, and widening their tiles alone.
Devices: products alone on several devices at once, which tells what sharing memory and cores costs,
beside the token, whose rest is messages and waits for the others; and the token once more without
spans, which tells what keeping them adds.

`bench_engine` says which targets are missed, this says by what. Run it with `python -m tpi_bench
+experiment=bench_profile`; draw it again with `python -m experiments.bench_profile FOLDER`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tpi_bench.report import figures, looks
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "q8": "q8", "q4": "q4"}
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "q8": 34 / 32, "q4": 18 / 32}


def shape_times(runs: pd.DataFrame, spans: pd.DataFrame) -> pd.DataFrame:
    """The run table with a row a shape, of points that have a span a matrix (`by_matrix`).

    `shape` is "OxI", `shape_s` the median time of one product, `shape_count` how many a token has.
    Other points keep one row, without them. `traced` tells which points kept spans.
    """
    import pandas as pd

    runs = runs.assign(traced=runs.point.isin(set(spans.point)))
    if "system_part" in runs:  # widening multiplies nothing: a limit of products is not its
        runs["beats_limit"] = runs.beats_limit.where(runs.system_part != "widening", False)
    runs = runs.assign(system_rows=pd.to_numeric(runs.system_rows))  # settings are kept as text
    own = runs[runs.system_by_matrix == "True"]
    spans = spans[spans.point.isin(own.point) & (spans.kind == "compute")]
    times = (spans.end_ns - spans.start_ns) / 1e9
    found = (
        spans.assign(shape_s=times)
        .groupby(["point", "key"], sort=False)
        .shape_s.agg(["median", "count"])
        .reset_index()
        .rename(columns={"key": "shape", "median": "shape_s", "count": "shape_count"})
    )
    least = found.groupby("point").shape_count.transform("min")  # the head is once in a token
    found["shape_count"] = found.shape_count / least
    return runs.merge(found, on="point", how="left")


def table(rows: pd.DataFrame) -> str:
    """The three accounts, of what was run."""
    parts = [by_matrix(rows), by_rows(rows), taken_apart(rows), by_devices(rows)]
    titles = (
        "GB/s of weights, matrix by matrix; all: of the products of a token together",
        "products of a prompt's rows",
        "what 8- and 4-bit weights take more than fp32, in ms and of fp32's time",
        "devices of one thread that share this host",
    )
    shown = zip(titles, parts, strict=True)
    return "\n\n".join(f"{t}\n{p.to_string(index=False)}" for t, p in shown if len(p))


def by_matrix(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a precision and number of threads: GB/s of each shape, largest first."""
    import pandas as pd

    return pd.DataFrame(list(_matrix_lines(rows)))


def _matrix_lines(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    own = rows[rows["shape"].notna()]
    shapes = sorted(set(own["shape"]), key=_size, reverse=True)
    for threads in sorted(own.threads_per_device.unique()):
        for weights, short in PRECISIONS.items():
            found = own[(own.weights == weights) & (own.threads_per_device == threads)]
            if found.empty:
                continue
            rates = found.assign(rate=found["shape"].map(_size) * _BYTES[weights] / found.shape_s)
            took = (found.shape_s * found.shape_count).groupby(found.repeat).sum()
            nbytes = found["shape"].map(_size) * found.shape_count * _BYTES[weights]
            rate = nbytes.groupby(found.repeat).sum() / took
            probed = found.groupby("repeat").memory_bps.first()
            same = {"model": found.model.iloc[0], "weights": weights, "num_devices": 1}
            tokens = _tokens(rows, threads_per_device=threads, **same)
            yield {
                "threads": f"{threads:.0f}",
                "weights": short,
                **{s: f"{rates[rates['shape'] == s].rate.median() / 1e9:.1f}" for s in shapes},
                "all": f"{rate.median() / 1e9:.1f}",
                "probed": f"{probed.median() / 1e9:.1f}",
                "of probed": _spread(rate / probed, "{:.0%}"),
                "products ms": _spread(took * 1e3),
                "token ms": _spread(tokens * 1e3),
                "not products": _spread(1 - took / tokens, "{:.0%}"),
            }


def by_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a precision: time by number of rows, and the straight line through them."""
    import pandas as pd

    own = _of_prompt(rows)
    own = own[own.part == "product"]
    counts = sorted(own.system_rows.unique())
    lines = []
    for weights, short in PRECISIONS.items():
        found = own[own.weights == weights]
        if found.empty:
            continue
        times = {n: _times(found[found.system_rows == n]) for n in counts}
        wide = {n: _times(own[(own.weights == "float32") & (own.system_rows == n)]) for n in counts}
        line: dict[str, Any] = {"weights": short}
        for count in counts:
            line[f"{count:.0f} rows ms"] = _spread(times[count] * 1e3)
            line[f"{count:.0f} of fp32"] = _spread(times[count] / wide[count], "{:.2f}")
        once, each = _straight([(n, times[n].median()) for n in counts])
        lines.append(line | {"once ms": f"{once * 1e3:.0f}", "a row ms": f"{each * 1e3:.2f}"})
    return pd.DataFrame(lines)


def taken_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a precision and number of rows: what a product takes more than fp32's whole, what its
    tiles alone take more (fp32 in tiles), what widening them takes, and what is then left.
    """
    import pandas as pd

    own, lines = _of_prompt(rows), []
    for weights in ("q8", "q4"):
        for count in sorted(own.system_rows.unique()):
            found = own[own.system_rows == count]
            wide, narrow = found[found.weights == "float32"], found[found.weights == weights]
            if "in_tiles" not in set(wide.part) or "widening" not in set(narrow.part):
                continue
            whole = _times(wide[wide.part == "product"])
            more = {
                "more": _times(narrow[narrow.part == "product"]) - whole,
                "by tiles": _times(wide[wide.part == "in_tiles"]) - whole,
                "by widening": _times(narrow[narrow.part == "widening"]),
            }
            more["left"] = more["more"] - more["by tiles"] - more["by widening"]
            lines.append(
                {"weights": weights, "rows": f"{count:.0f}"}
                | {f"{name} ms": _spread(times * 1e3) for name, times in more.items()}
                | {f"{name} of fp32": _spread(t / whole, "{:.0%}") for name, t in more.items()}
            )
    return pd.DataFrame(lines)


def _of_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    """Products of several rows, with the `part` of them that was run."""
    own = rows[(rows.system == "products") & (rows.system_rows > 1)]
    if "system_part" not in own:  # of earlier rows
        return own.assign(part="product")
    return own.assign(part=own.system_part.fillna("product"))


def by_devices(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a model, precision and number of devices: products beside the whole token."""
    import pandas as pd

    whole = rows[rows["shape"].isna() & (rows.system_rows.isna() | (rows.system_rows == 1))]
    own = whole[whole.threads_per_device == 1]
    lines = []
    keys = own[own.system == "products"].groupby(["model", "weights", "num_devices"], sort=False)
    for (model, weights, devices), products in keys:
        alone = own[(own.model == model) & (own.weights == weights)]
        token = _tokens(alone, num_devices=devices)
        one = _times(alone[(alone.system == "products") & (alone.num_devices == 1)])
        part = _times(products)
        shares = alone[(alone.system == "tpi") & (alone.num_devices == devices) & alone.traced]
        plain = _tokens(alone, traced=False, num_devices=devices)
        lines.append(
            {
                "model": model,
                "weights": PRECISIONS[weights],
                "devices": f"{devices:.0f}",
                "products ms": _spread(part * 1e3),
                "of one device's": _spread(part / one, "{:.2f}"),
                "token ms": _spread(token * 1e3),
                "without spans ms": _spread(plain * 1e3),
                "of its token": _spread(token / _tokens(alone, num_devices=1), "{:.2f}"),
                "computing": _spread(shares.compute_share, "{:.0%}"),
                "messages and waits": _spread(shares.sync_share, "{:.0%}"),
                "limit ms": f"{shares.limit_token_s.median() * 1e3:.1f}",
            }
        )
    return pd.DataFrame(lines)


def draw(rows: pd.DataFrame) -> Figure:
    """Rates of each shape beside the probed bandwidth; products and token by devices."""
    figure = figures.new_figure(2.8, num_columns=2)
    left, right = figure.subplots(1, 2)
    _draw_rates(left, rows)
    _draw_rows(right, rows)
    return figure


def _draw_rates(axes: Axes, rows: pd.DataFrame) -> None:
    own = rows[rows["shape"].notna()]
    own = own[own.threads_per_device == own.threads_per_device.min()]
    shapes = sorted(set(own["shape"]), key=_size)
    colours = looks.shades([short for w, short in PRECISIONS.items() if w in set(own.weights)])
    for weights, short in PRECISIONS.items():
        found = own[own.weights == weights]
        if len(found):
            rate = found["shape"].map(_size) * _BYTES[weights] / found.shape_s / found.memory_bps
            middle = rate.groupby(found["shape"]).median().reindex(shapes)
            axes.plot(range(len(shapes)), middle, marker="o", label=short, color=colours[short])
    axes.axhline(1, **looks.LIMIT)
    words = [shape.replace("x", "\nx ") for shape in shapes]
    axes.set_xticks(range(len(shapes)), words, fontsize=6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("matrix, one thread")
    axes.set_ylabel("share of probed bandwidth")
    figures.name_ends(axes)


def _draw_rows(axes: Axes, rows: pd.DataFrame) -> None:
    own = _of_prompt(rows)
    own = own[own.part == "product"]
    colours = looks.shades([short for w, short in PRECISIONS.items() if w in set(own.weights)])
    for weights, short in PRECISIONS.items():
        found = own[own.weights == weights]
        if len(found):
            times = found.groupby("system_rows").token_latency_p50_s.median()
            axes.plot(times.index, times, marker="o", label=short, color=colours[short])
    if len(own):
        figures.log_values(axes, own.system_rows)
        axes.set_yscale("log")
        figures.plain_numbers(axes.yaxis)
    axes.set_xlabel("rows of a prompt, two threads")
    axes.set_ylabel("products of all layers (s)")
    figures.name_ends(axes)


def _size(shape: str) -> int:
    return math.prod(int(part) for part in shape.split("x"))


def _tokens(rows: pd.DataFrame, traced: bool = True, **wanted: Any) -> pd.Series:
    own = rows[(rows.system == "tpi") & (rows.traced == traced)]
    for column, value in wanted.items():
        own = own[own[column] == value]
    return _times(own)


def _times(rows: pd.DataFrame) -> pd.Series:
    """One a repeat."""
    return rows.groupby("repeat").token_latency_p50_s.median().dropna()


def _straight(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope by least squares."""
    if len(points) < 2:
        return math.nan, math.nan
    slope, intercept = np.polyfit([x for x, _ in points], [y for _, y in points], 1)
    return float(intercept), float(slope)


def _spread(values: pd.Series, pattern: str | None = None) -> str:
    found = values.dropna()
    return figures.median_and_range(found, pattern or "{:.3g}") if len(found) else "-"


DRAWING = Drawing(
    name="bench_profile", rows=succeeded, table=table, draw=draw, of_spans=shape_times
)

if __name__ == "__main__":
    DRAWING.again()
