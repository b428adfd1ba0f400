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
    from matplotlib.text import Text

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
    place = {"xytext": (1, 1.5), "textcoords": "offset points", "fontsize": size}
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


def hidden_lines(axes: Axes, least_points: float = 2.0) -> dict[str, list[str]]:
    """Which lines lie under which later one: most of their points no further apart than
    `least_points` (1/72 inch), and at least two. Of one that lies under several the last is told.
    """
    lines = named_lines(axes)
    dots = least_points / 72 * axes.figure.get_figure(root=True).dpi
    found: dict[str, list[str]] = {}
    for number, (name, line) in enumerate(lines.items()):
        covers = [
            other
            for other, above in list(lines.items())[number + 1 :]
            if _is_under(axes, line, above, dots)
        ]
        if covers:
            found.setdefault(covers[-1], []).append(name)
    return found


def _is_under(axes: Axes, below: Any, above: Any, dots: float) -> bool:
    first, second = (
        {x: y for x, y in zip(*line.get_data(), strict=True) if np.isfinite(float(y))}
        for line in (below, above)
    )
    shared = [x for x in first if x in second]
    if len(shared) < 2:
        return False
    ours, theirs = (
        axes.transData.transform([(index, line[x]) for index, x in enumerate(shared)])[:, 1]
        for line in (first, second)
    )
    return bool((np.abs(ours - theirs) < dots).sum() >= max(2.0, _MOST * len(first)))


def name_hidden(figure: Figure) -> list[Text]:
    """Says which lines lie under which, once each, in that of their panels that has most room."""
    figure.draw_without_rendering()
    found: dict[str, list[Axes]] = {}
    for axes in figure.axes:
        if axes.get_visible():
            for above, below in hidden_lines(axes).items():
                found.setdefault(f"{_and(below)} under\n{above}", []).append(axes)
    texts = []
    for words, panels in found.items():
        often = f" (in {len(panels)} panels)" if len(panels) > 1 else ""
        tried = [_in_room(axes, words + often) for axes in panels]
        best = min(tried, key=lambda each: each[1])[0]
        for text, _ in tried:
            if text is not best:
                text.remove()
        texts.append(best)
    return texts


def _in_room(axes: Axes, words: str, size: float = 6.0) -> tuple[Text, int]:
    """A note where it covers the fewest lines and other words, corners first; and how many."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    text = axes.text(0, 0, words, fontsize=size, transform=axes.transAxes, bbox=ground, zorder=5)
    text.set_in_layout(False)
    taken = _taken(axes, text)
    best, fewest = _PLACES[0], len(taken) + 1
    for x, y, ha, va in _PLACES:
        text.set(x=x, y=y, ha=ha, va=va)
        box = text.get_window_extent().transformed(axes.transAxes.inverted())
        inside = (taken > box.min - 0.01).all(axis=1) & (taken < box.max + 0.01).all(axis=1)
        if inside.sum() < fewest:
            best, fewest = (x, y, ha, va), int(inside.sum())
    x, y, ha, va = best
    text.set(x=x, y=y, ha=ha, va=va)
    return text, fewest


_MOST = 0.75  # of its points
_SIDES = ((0.02, "left"), (0.98, "right"), (0.5, "center"))
_HEIGHTS = ((0.02, "bottom"), (0.98, "top"), *((0.1 * tenth, "center") for tenth in range(2, 9)))
_PLACES = [(x, y, ha, va) for y, va in _HEIGHTS for x, ha in _SIDES]


def _taken(axes: Axes, own: Text) -> np.ndarray:
    """Points of the panel that lines and words cover, as shares of it."""
    found = [np.array([[2.0, 2.0]])]
    back = axes.transAxes.inverted()
    for line in axes.get_lines():
        data = np.asarray(line.get_xydata(), dtype=float)
        data = data[np.isfinite(data).all(axis=1)]
        if len(data):
            shown = back.transform(line.get_transform().transform(data))
            along = np.arange(len(shown))
            fine = np.linspace(0, len(shown) - 1, 40 * len(shown))
            found.append(np.column_stack([np.interp(fine, along, part) for part in shown.T]))
    for text in axes.texts:
        if text is not own and text.get_text():
            box = text.get_window_extent().transformed(back)
            found.append(_grid(box))
    legend = axes.get_legend()
    if legend is not None:
        found.append(_grid(legend.get_window_extent().transformed(back)))
    return np.concatenate(found)


def _grid(box: Any) -> np.ndarray:
    """Points all over it."""
    sides = np.linspace(0, 1, 8)
    return np.array(
        [[box.x0 + u * box.width, box.y0 + v * box.height] for u in sides for v in sides]
    )


def _and(words: Sequence[str]) -> str:
    verb = "is" if len(words) == 1 else "are"
    return f"{', '.join(words[:-1])} and {words[-1]} {verb}" if words[1:] else f"{words[0]} {verb}"


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
