"""Lines of a figure that lie under others: no reader can see them, so the figure says so.

`Drawing.figure` does this with every experiment's figure once it is laid out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tpi_bench.report.figures import named_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_MOST = 0.75  # of a line's points
_LETTER = 0.55  # how wide one is, of its size


def hidden_lines(axes: Axes, least_points: float = 2.0) -> dict[str, dict[str, float]]:
    """Which lines lie under which later one, and with what share of their points: most, no further
    apart than `least_points` (1/72 inch), and at least two. Of several above it the last is told.
    """
    lines = named_lines(axes)
    dots = least_points / 72 * axes.figure.get_figure(root=True).dpi
    found: dict[str, dict[str, float]] = {}
    for number, (name, line) in enumerate(lines.items()):
        later = list(lines.items())[number + 1 :]
        shares = {other: _share_under(axes, line, above, dots) for other, above in later}
        covers = [other for other, share in shares.items() if share >= _MOST]
        if covers:
            found.setdefault(covers[-1], {})[name] = shares[covers[-1]]
    return found


def _share_under(axes: Axes, below: Any, above: Any, dots: float) -> float:
    first, second = (
        {x: y for x, y in zip(*line.get_data(), strict=True) if np.isfinite(float(y))}
        for line in (below, above)
    )
    shared = [x for x in first if x in second]
    if len(shared) < 2:
        return 0.0
    ours, theirs = (
        axes.transData.transform([(index, line[x]) for index, x in enumerate(shared)])[:, 1]
        for line in (first, second)
    )
    count = int((np.abs(ours - theirs) < dots).sum())
    return count / len(first) if count > 1 else 0.0


def name_hidden(figure: Figure) -> list[Text]:
    """Says which lines lie under which, once each, in that of their panels that has most room."""
    figure.draw_without_rendering()
    found: dict[str, list[Axes]] = {}
    for axes in figure.axes:
        if axes.get_visible():
            for above, below in hidden_lines(axes).items():
                words = f"{_and([_how(*each) for each in below.items()])} under\n{above}"
                found.setdefault(words, []).append(axes)
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
    width = axes.get_window_extent().width / axes.figure.get_figure(root=True).dpi * 72
    most = max(12, int(0.95 * width / (_LETTER * size)))
    words = "\n".join(textwrap.fill(line, most) for line in words.split("\n"))
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    text = axes.text(0, 0, words, fontsize=size, transform=axes.transAxes, bbox=ground, zorder=5)
    text.set_in_layout(False)
    taken = _taken(axes, text)
    best, fewest = _PLACES[0], len(taken) + 1
    for x, y, ha, va in _PLACES:
        text.set(x=x, y=y, ha=ha, va=va)
        box = text.get_window_extent().transformed(axes.transAxes.inverted())
        low, high = np.asarray(box.min) - 0.01, np.asarray(box.max) + 0.01
        inside = ((taken > low) & (taken < high)).all(axis=1)
        if inside.sum() < fewest:
            best, fewest = (x, y, ha, va), int(inside.sum())
    x, y, ha, va = best
    text.set(x=x, y=y, ha=ha, va=va)
    return text, fewest


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


def _how(name: str, share: float) -> str:
    return name if share == 1 else f"{name} (mostly)"


def _and(words: Sequence[str]) -> str:
    verb = "is" if len(words) == 1 else "are"
    return f"{', '.join(words[:-1])} and {words[-1]} {verb}" if words[1:] else f"{words[0]} {verb}"
