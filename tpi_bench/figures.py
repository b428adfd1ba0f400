"""The look of all figures: a paper's column width, colours safe for the colour-blind."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.results import read_runs

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLUMN_INCHES = 3.4
COLUMN_GAP_INCHES = 0.2
_MARKERS = "osD^vPX*<>hd"

_STYLE = {
    "font.size": 7.5,
    "axes.labelsize": 8,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "savefig.dpi": 300,
}


def new_figure(height_inches: float = 2.6, num_columns: int = 1) -> Figure:
    """An empty figure, one or two columns wide, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(context="paper", style="whitegrid", rc=_STYLE)
    width = COLUMN_INCHES if num_columns == 1 else 2 * COLUMN_INCHES + COLUMN_GAP_INCHES
    return plt.figure(figsize=(width, height_inches), layout="constrained")


def palette(names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A colour for each name, the same whenever the names are the same."""
    import seaborn as sns

    return dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))


def with_markers(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name with the marker of its line."""
    return list(zip(names, itertools.cycle(_MARKERS), strict=False))


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """PNG and PDF of the figure in `folder`."""
    import matplotlib.pyplot as plt

    paths = [folder / f"{name}.{ending}" for ending in ("png", "pdf")]
    for path in paths:
        figure.savefig(path)
    plt.close(figure)
    return paths


def log_milliseconds(axes: Axes) -> None:
    """A logarithmic time axis whose labels are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 4 * low:  # nearly level lines are not blown up
        low, high = low / 2, high * 2
        axes.set_ylim(low, high)
    subs = (1.0, 2.0, 5.0) if high / low < 2000 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plain_numbers(axis: Axis) -> None:
    """Labels of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_values(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with a tick at each value that was swept."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xticks(sorted(set(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


_NAMES = {
    "tpi": "TPI",
    "transformers": "Transformers",
    "accelerate": "Accelerate",
    "llamacpp": "llama.cpp",
    "galaxy": "Galaxy",
    "edgeshard": "EdgeShard",
}
# Real libraries run in one process, wherever the others have several devices.
LIBRARIES = ("transformers", "accelerate", "llamacpp")
_UNSET = ("off", "False", "None", "nan", "auto", "disk", "0")


def system_name(row: Mapping[Any, Any]) -> str:
    """How a run's system is named, without how many devices it has."""
    system = str(row["system"])
    parts = [_NAMES.get(system, system)]
    if system == "tpi":
        parts.append(str(row["system_collective"]))
    for column, pattern in (
        ("weights", "{}"),
        ("offload", "{}"),
        ("window", "window {}"),
        ("retain_every", "keep {}"),
    ):
        value = str(row.get(f"system_{column}"))
        if value not in _UNSET:
            parts.append(pattern.format(value))
    if system == "tpi" and str(row.get("system_resident_io")) == "True":
        parts.append("with head")
    return " ".join(parts)


def system_label(row: Mapping[Any, Any]) -> str:
    """How a run's system is named in tables and legends of several devices."""
    name = system_name(row)
    return f"{name}, 1 device" if row["system"] in LIBRARIES else name


# What tells lines apart when it varies among the rows, and how it is written.
_VARYING = {
    "num_devices": "{:.0f} devices",
    "model": "{}",
    "dtype": "{}",
    "topology": "{}",
    "bandwidth_mbps": "{:g} Mbit/s",
    "jitter_ms": "jitter {:g} ms",
    "threads_per_device": "{:.0f} threads",
    "system_loading": "{} loading",
    "system_planner": "{} planner",
    "system_mmap": "mmap {}",
    "system_attention": "{} attention",
    "system_dtype": "in {}",
    "memory_mb": "{:.0f} MB",
    "cache": "{} cache",
    "prompt_tokens": "prompt {:.0f}",
    "num_tokens_asked": "{:.0f} tokens",
}


def labels(rows: pd.DataFrame, along: Sequence[str] = ()) -> list[str]:
    """A line's name for each row: its system, and whatever differs within that system.

    `along` names columns that are an axis of the figure and so no part of a line's name.
    """
    names = [system_label(row) for row in rows.to_dict("records")]
    for column, pattern in _VARYING.items():
        if column not in rows or column in along:
            continue
        kinds = rows[column].groupby(names).transform("nunique")
        values = rows[column].tolist()
        names = [
            f"{name}, {_singular(pattern.format(value))}" if count > 1 else name
            for name, value, count in zip(names, values, kinds, strict=True)
        ]
    return names


def _singular(words: str) -> str:
    return words.removesuffix("s") if words.startswith("1 ") else words


def median_and_range(values: pd.Series, pattern: str) -> str:
    """As `12 [11, 15]`."""
    middle, low, high = (pattern.format(v) for v in (values.median(), values.min(), values.max()))
    return f"{middle} [{low}, {high}]"


def redraw(
    name: str,
    has_rows: Callable[[pd.DataFrame], bool],
    table: Callable[[pd.DataFrame], str],
    draw: Callable[[pd.DataFrame], Figure],
) -> None:
    """`python -m experiments.NAME FOLDER`: table and figure again from stored rows."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m experiments.{name} RESULTS_FOLDER")
    folder = Path(sys.argv[1])
    try:
        runs = read_runs(folder)
        if not has_rows(runs):
            raise ValueError(f"{folder} holds no point of {name} that succeeded")
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table(runs))
    print(*save_figure(draw(runs), folder, name), sep="\n")
