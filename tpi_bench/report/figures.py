"""The look of all figures: a paper's column width, colours safe for the colour-blind."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    """The colour of each line (system, collective, cap ...), in the order of the names.

    The same whenever the names are the same.
    """
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


def median_and_range(values: pd.Series, pattern: str) -> str:
    """As `12 [11, 15]`."""
    middle, low, high = (pattern.format(v) for v in (values.median(), values.min(), values.max()))
    return f"{middle} [{low}, {high}]"
