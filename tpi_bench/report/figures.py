"""What all figures are drawn with: a paper's column width, axes, names of lines.

Which colour and marker is whose is said in `looks.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    "legend.frameon": False,
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


def with_markers(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name, of what is no system, with the marker of its line."""
    return list(zip(names, itertools.cycle(_MARKERS), strict=False))


def patch(colour: Any, label: str) -> Any:
    """A field of a legend."""
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label, linewidth=0)


def handles_of(panels: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """What a legend of all panels shows, each name once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return list(found.values()), list(found)


def name_ends(axes: Axes, size: float = 6.0) -> None:
    """The names of the lines beside their last points, in their colours, where there is room."""
    figure = axes.figure
    height = axes.get_position().height * figure.get_figure(root=True).get_size_inches()[1] * 72
    ends = sorted(_ends(axes), key=lambda end: end[2][1])
    heights = _apart([y for _, _, (_, y) in ends], 1.2 * size / max(height, 1.0))
    for (line, name, _), y in zip(ends, heights, strict=True):
        axes.text(
            1.02,
            y,
            name,
            color=line.get_color(),
            fontsize=size,
            va="center",
            transform=axes.transAxes,
        )


def name_on_line(axes: Axes, xs: Any, ys: Any, words: str, size: float = 6.0) -> None:
    """A short name just above a line, between its first two points; nothing of no words."""
    places = list(zip(np.asarray(xs, dtype=float), np.asarray(ys, dtype=float), strict=True))[:2]
    if not words or len(places) < 2:
        return
    x, y = (
        np.exp(np.log(np.asarray(places)).mean(axis=0))
        if axes.get_xscale() == "log"
        else (np.asarray(places).mean(axis=0))
    )
    place: dict[str, Any] = {"xytext": (1, 1.5), "textcoords": "offset points", "fontsize": size}
    axes.annotate(words, (x, y), **place)


def _apart(heights: Sequence[float], step: float) -> list[float]:
    """Rising heights, moved as little as it takes to be `step` apart, none above the panel."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + step) if found else height)
    highest = 1.0
    for number in reversed(range(len(found))):
        found[number] = min(found[number], highest)
        highest = found[number] - step
    return found


def _ends(axes: Axes) -> list[tuple[Any, str, tuple[float, float]]]:
    """Each line with its name and where it ends, as shares of the panel."""
    found = []
    for name, line in named_lines(axes).items():
        xs, ys = (np.asarray(values, dtype=float) for values in line.get_data())
        shown = np.isfinite(ys)
        if shown.any():
            place = axes.transData.transform((xs[shown][-1], ys[shown][-1]))
            found.append((line, name, tuple(axes.transAxes.inverted().transform(place))))
    return found


def named_lines(axes: Axes) -> dict[str, Any]:
    """The lines of a panel that a legend would name and that have points, in drawing order."""
    found = {}
    for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
        line = handle[0] if isinstance(handle, tuple) and handle else handle
        if hasattr(line, "get_data") and len(line.get_data()[0]) > 0:
            found[str(name)] = line
    return found


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """PNG and PDF of the figure in `folder`; the same bytes whenever they are drawn."""
    import matplotlib.pyplot as plt

    paths = [folder / f"{name}.{ending}" for ending in ("png", "pdf")]
    undated = {".png": {}, ".pdf": {"CreationDate": None}}
    for path in paths:
        figure.savefig(path, metadata=undated[path.suffix])
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
