"""How fast is virtual time? Wall time of a point, and of an event, by system and devices.

`wall_s` of a row is the run alone; what a sweep takes a point, with composing, planning, records
and tables, is the time between the starts of its points, all workers together. Run it with `make
bench` or `python -m tpi_bench +experiment=bench_virtual`; draw it again with `python -m
experiments.bench_virtual FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is asked: seconds a point of a sweep, all workers together, where there are enough of them;
# else of a run.
_MANY = 20
_MOST_SWEEP_S = {"llama2_7b": 0.12, "llama2_70b": 0.4}
_MOST_RUN_S = {256: 15.0, 1000: 60.0}
_MOST_EVENT_US = 2.5  # at 256 devices
_AT_DEVICES = 256


def table(rows: pd.DataFrame) -> str:
    """A line a model, system and number of devices, and what is asked."""
    import pandas as pd

    groups = rows.groupby(["model", "line", "num_devices"], sort=False)
    lines = [
        {
            "model": model,
            "line": line,
            "devices": devices,
            "points": len(group),
            "run s": figures.median_and_range(group.wall_s, "{:.3f}"),
            "events": f"{group.num_events.median():.0f}",
            "us an event": figures.median_and_range(group.event_us, "{:.2f}"),
        }
        for (model, line, devices), group in groups
    ]
    text = pd.DataFrame(lines).to_string(index=False)
    return "\n".join([text, *verdicts(rows)])


def verdicts(rows: pd.DataFrame) -> list[str]:
    """Each thing that is asked and that these rows can tell, with the figure and yes or NO."""
    found = []
    for model, most in _MOST_SWEEP_S.items():
        own = rows[(rows.model == model) & (rows.num_devices < _AT_DEVICES)]
        if len(own) >= _MANY:
            took = own.sweep_s.sum() / len(own)
            name = f"{model}, seconds a point of a sweep of {len(own)}"
            found.append(_verdict(name, took, most))
    for devices, most in _MOST_RUN_S.items():
        own = rows[rows.num_devices == devices]
        if len(own):
            found.append(_verdict(f"{devices} devices, seconds of a run", own.wall_s.max(), most))
    own = rows[rows.num_devices == _AT_DEVICES]
    if len(own):
        name = f"{_AT_DEVICES} devices, microseconds an event"
        found.append(_verdict(name, own.event_us.median(), _MOST_EVENT_US))
    return found


def _verdict(name: str, value: float, most: float) -> str:
    return f"{name}: {value:.3g} (at most {most:g}: {'yes' if value <= most else 'NO'})"


def draw(rows: pd.DataFrame) -> Figure:
    """Wall time of a run by devices, and of an event by the events of its run."""
    labels = list(dict.fromkeys(rows.line))
    styles = looks.point_styles(labels)
    figure = figures.new_figure(2.6, num_columns=2)
    left, right = figure.subplots(1, 2)
    for label in labels:
        own = rows[rows.line == label]
        style = {**styles[label], "alpha": 0.6}
        left.plot(own.num_devices, own.wall_s, label=label, **style)
        busy = own[own.num_events >= 1000]
        right.plot(busy.num_events, busy.event_us, **style)
    counts = {count for count in rows.num_devices if count & (count - 1) == 0}  # others collide
    figures.log_values(left, sorted(counts | {rows.num_devices.max()}))
    figures.log_milliseconds(left)
    left.set_xlabel("devices")
    left.set_ylabel("wall time of a run (s)")
    _draw_event_axes(right)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncol=4)
    return figure


def _draw_event_axes(axes: Axes) -> None:
    axes.set_xscale("log")
    figures.log_milliseconds(axes)
    axes.axhline(_MOST_EVENT_US, color="k", linewidth=0.7)
    place: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "va": "bottom",
        "ha": "right",
        "fontsize": 6,
    }
    axes.text(0.99, _MOST_EVENT_US, f"asked: {_MOST_EVENT_US:g} at {_AT_DEVICES} devices", **place)
    axes.set_xlabel("events of a run")
    axes.set_ylabel("wall time of an event (µs)")


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Those that succeeded, with what an event took, and what the sweep took for each point."""
    import pandas as pd

    rows = succeeded(runs)
    started = pd.to_datetime(rows.started, format="ISO8601")
    until_next = (started.shift(-1) - started).dt.total_seconds()
    return rows.assign(
        line=[names.system_label(row) for row in rows.to_dict("records")],
        event_us=1e6 * rows.wall_s / rows.num_events.astype(float).clip(lower=1.0),
        sweep_s=until_next.fillna(rows.wall_s),  # of the last, nothing follows
    )


DRAWING = Drawing(name="bench_virtual", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
