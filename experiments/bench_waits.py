"""What does a token wait for: the disk, or a core?

Where weights stream: a token beside the same reads by themselves (`system=reads`), through the same
window and through none. What the window takes more than none is what its memory costs; what a token
takes more than the reads is what is not hidden behind them. Where devices share cores: the CPU time
of all of them, by what it went to, and how long they were ready while others had the cores, from
spans that count both (`testbed.trace=true`).

Run it with `python -m tpi_bench +experiment=bench_waits`; draw it again with `python -m
experiments.bench_waits FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "q8": "q8", "q4": "q4"}
_LAST_OF_TOKEN = ("sample", "products")  # one span a token, on the master
_CPU = {
    "products_cpu_s": "products",
    "other_cpu_s": "other computing",
    "messages_cpu_s": "messages",
    "rest_s": "idle, and between spans",
}


def core_times(runs: pd.DataFrame, spans: pd.DataFrame) -> pd.DataFrame:
    """The run table with what the devices of a point had of the cores, in s a token.

    `computing_cpu_s` and `messages_cpu_s` are CPU time of all devices, `core_wait_s` how long they
    were ready without a core, `master_core_wait_s` that of the master. Told are the first threads
    of devices, which are all where a device has one, from the first token to the last. A device
    that has a core for itself polls a while before it sleeps, and what it polls is CPU time too.
    """
    import pandas as pd

    ended, found = succeeded(runs), []
    counts = dict(zip(ended.point, ended.num_tokens, strict=True))
    told = spans[spans.core_wait_ns.notna() & spans.point.isin(ended.point)]
    for point, own in told.groupby("point", sort=False):
        number = int(counts[point])
        within = _last_tokens(own, number)
        if number < 2 or within.empty:
            continue
        is_sync, scale = within.kind == "sync", 1e9 * (number - 1)
        waited = within.core_wait_ns
        found.append(
            {
                "point": point,
                "computing_cpu_s": within[~is_sync].cpu_ns.sum() / scale,
                "messages_cpu_s": within[is_sync].cpu_ns.sum() / scale,
                "core_wait_s": waited.sum() / scale,
                "master_core_wait_s": waited[within["rank"] == 0].sum() / scale,
            }
        )
    columns = ["computing_cpu_s", "messages_cpu_s", "core_wait_s", "master_core_wait_s"]
    return runs.merge(pd.DataFrame(found, columns=["point", *columns]), on="point", how="left")


def _last_tokens(own: pd.DataFrame, number: int) -> pd.DataFrame:
    """Spans of a point from the first of its last tokens, so many, to the last.

    Devices that multiply each for itself (`system=products`) come to their last tokens on their own
    time.
    """
    marks = own[own.key.isin(_LAST_OF_TOKEN)]
    if set(marks.key) == {"products"}:
        order = marks.sort_values("end_ns").groupby("rank").cumcount(ascending=False)
        return marks.loc[order.index[order < number - 1]]
    ends = marks[marks["rank"] == 0].end_ns.sort_values()
    if len(ends) < number:
        return own.head(0)
    return own[(own.end_ns > ends.iloc[-number]) & (own.end_ns <= ends.iloc[-1])]


def streamed(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a repeat, precision and memory: `token_s`, and the same reads alone, `window_s` through
    the window and `nothing_s` through none.
    """
    import pandas as pd

    own = rows[rows.memory_mb.notna()]
    reads = own[own.system == "reads"]
    parts = {
        "token_s": own[own.system == "tpi"],
        "window_s": reads[reads.system_through == "window"] if len(reads) else reads,
        "nothing_s": reads[reads.system_through == "nothing"] if len(reads) else reads,
    }
    keys = ["memory_mb", "weights", "repeat"]
    times = [part.groupby(keys).token_latency_p50_s.median() for part in parts.values()]
    found = pd.concat(times, axis=1, keys=list(parts))
    found["streamed_bytes"] = parts["token_s"].groupby(keys).streamed_bytes.first()
    found["core_wait_s"] = parts["token_s"].groupby(keys).core_wait_s.median()
    found = found.dropna(subset="token_s").reset_index()
    order = found.weights.map(list(PRECISIONS).index)
    return found.assign(order=order).sort_values(["memory_mb", "order"], ascending=[False, True])


def shared(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a repeat, allreduce and number of devices: CPU time by what it went to, in s a token.

    `rest_s` is what is left of the time of a token on the cores that its devices can use.
    """
    own = rows[rows.memory_mb.isna() & (rows.threads_per_device == 1) & rows.core_wait_s.notna()]
    products = own[own.system == "products"]
    alone = products.groupby(["num_devices", "repeat"]).computing_cpu_s.median()
    found = own[own.system == "tpi"].merge(
        alone.rename("products_cpu_s"), on=["num_devices", "repeat"]
    )
    cores = found.cores.clip(upper=found.num_devices)
    used = found.computing_cpu_s + found.messages_cpu_s
    return found.assign(
        other_cpu_s=found.computing_cpu_s - found.products_cpu_s,
        rest_s=found.token_latency_s * cores - used,
        busy_share=used / (found.token_latency_s * cores),
    )


def table(rows: pd.DataFrame) -> str:
    """Both accounts, of what was run."""
    parts = {
        "a token whose weights stream, beside the same reads alone": _streamed_lines(rows),
        "CPU time of all devices, ms a token, and waits for a core": _shared_lines(rows),
    }
    shown = ((title, part) for title, part in parts.items() if len(part))
    return "\n\n".join(f"{title}\n{part.to_string(index=False)}" for title, part in shown)


def _streamed_lines(rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for (memory, weights), own in streamed(rows).groupby(["memory_mb", "weights"], sort=False):
        rate = own.streamed_bytes / own.nothing_s / 1e9
        lines.append(
            {
                "memory MB": f"{memory:.0f}",
                "weights": PRECISIONS[weights],
                "streamed MB": f"{own.streamed_bytes.median() / 1e6:.0f}",
                "disk GB/s": _spread(rate, "{:.2f}"),
                "reads ms": _spread(own.nothing_s * 1e3),
                "through the window ms": _spread(own.window_s * 1e3),
                "token ms": _spread(own.token_s * 1e3),
                "reads / token": _spread(own.nothing_s / own.token_s, "{:.0%}"),
                "window / token": _spread(own.window_s / own.token_s, "{:.0%}"),
                "master thread waits for a core ms": _spread(own.core_wait_s * 1e3),
            }
        )
    return pd.DataFrame(lines)


def _shared_lines(rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    lines: list[dict[str, Any]] = []
    groups = shared(rows).groupby(["system_collective", "num_devices"], sort=False)
    for (collective, devices), own in groups:
        lines.append(
            {
                "allreduce": collective if devices > 1 else "none",
                "devices": f"{devices:.0f}",
                "token ms": _spread(own.token_latency_s * 1e3),
                **{name: _spread(own[column] * 1e3) for column, name in _CPU.items()},
                "cores busy": _spread(own.busy_share, "{:.0%}"),
                "waits for a core": _spread(own.core_wait_s * 1e3),
                "the master's": _spread(own.master_core_wait_s * 1e3),
                "limit ms": f"{own.limit_token_s.median() * 1e3:.1f}",
            }
        )
    return pd.DataFrame(lines)


def draw(rows: pd.DataFrame) -> Figure:
    """Reads and tokens by precision; CPU time by the number of devices."""
    figure = figures.new_figure(2.8, num_columns=2)
    left, right = figure.subplots(1, 2)
    _draw_streamed(left, rows)
    _draw_shared(right, rows)
    return figure


def _draw_streamed(axes: Axes, rows: pd.DataFrame) -> None:
    found = streamed(rows)
    labels = {"nothing_s": "reads alone", "window_s": "through the window", "token_s": "token"}
    colours = looks.shades(list(labels.values()))
    cases = list(found[["memory_mb", "weights"]].drop_duplicates().itertuples(index=False))
    for number, (column, label) in enumerate(labels.items()):
        for place, (memory, weights) in enumerate(cases):
            own = found[(found.memory_mb == memory) & (found.weights == weights)][column].dropna()
            if own.empty:
                continue
            middle = own.median()
            axes.bar(
                place + 0.27 * (number - 1),
                middle,
                0.25,
                color=colours[label],
                label=label if place == 0 else None,
                yerr=[[middle - own.min()], [own.max() - middle]],
                error_kw={"elinewidth": 0.6},
            )
    words = [f"{PRECISIONS[w]}\n{memory / 1e3:g} GB" for memory, w in cases]
    axes.set_xticks(range(len(cases)), words)
    axes.set_xlabel("weights and memory of the device")
    axes.set_ylabel("time of a token (s)")
    if cases:
        axes.legend()


def _draw_shared(axes: Axes, rows: pd.DataFrame) -> None:
    found = shared(rows)
    colours = looks.shades(list(_CPU.values()))
    cases = [
        (collective, devices)
        for devices, collective in sorted(
            set(zip(found.num_devices, found.system_collective, strict=True))
        )
        if devices > 1 or collective == "star"
    ]
    for place, (collective, devices) in enumerate(cases):
        own = found[(found.num_devices == devices) & (found.system_collective == collective)]
        bottom = 0.0
        for column, label in _CPU.items():
            height = max(0.0, own[column].median() * 1e3)
            shown = label if place == 0 else None
            axes.bar(place, height, 0.7, bottom=bottom, color=colours[label], label=shown)
            bottom += height
    words = [f"{devices:.0f}\n{collective if devices > 1 else ''}" for collective, devices in cases]
    axes.set_xticks(range(len(cases)), words)
    cores = found.cores.max() if len(found) else 0
    axes.set_xlabel(f"devices of one thread on {cores:.0f} cores")
    axes.set_ylabel("time of the cores, a token (ms)")
    if cases:
        axes.legend()


def _spread(values: pd.Series, pattern: str | None = None) -> str:
    found = values.dropna()
    return figures.median_and_range(found, pattern or "{:.3g}") if len(found) else "-"


DRAWING = Drawing(name="bench_waits", rows=succeeded, table=table, draw=draw, of_spans=core_times)

if __name__ == "__main__":
    DRAWING.again()
