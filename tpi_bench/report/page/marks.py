"""Where a pointer finds which value on a drawn figure: points of lines, bars, spans of time, fields
of maps.
"""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_hex

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 72  # of an inch, the unit of matplotlib's SVG
_RADIUS = 5.0
_BOX_CORNERS = 5  # of a path that comes back to where it began
_APART = 3.0  # points; of marks that are nearer a pointer finds the first


@dataclass(frozen=True)
class Mark:
    """In points from the top left: a circle, or a box where it has a width."""

    x: float
    y: float
    text: str
    width: float = 0.0
    height: float = 0.0

    def svg(self) -> str:
        title = f"<title>{html.escape(self.text)}</title>"
        place = f'{self.x:.1f}" {{}}="{self.y:.1f}"'
        if self.width:
            size = f'width="{self.width:.1f}" height="{self.height:.1f}"'
            return f'<rect class="mark" x="{place.format("y")} {size}>{title}</rect>'
        return f'<circle class="mark" cx="{place.format("cy")} r="{_RADIUS:g}">{title}</circle>'


def marks_of(figure: Figure) -> list[Mark]:
    """Of a figure that has been drawn."""
    found: dict[tuple[int, int], Mark] = {}
    for axes in figure.axes:
        for mark in _Panel(axes, figure).marks():
            found.setdefault((round(mark.x / _APART), round(mark.y / _APART)), mark)
    return list(found.values())


class _Panel:
    """One of a figure's axes."""

    def __init__(self, axes: Axes, figure: Figure) -> None:
        self._axes, self._figure = axes, figure
        self._title = axes.get_title()
        self._scale = POINTS / figure.dpi

    def marks(self) -> Iterator[Mark]:
        for line in self._axes.lines:
            points: Any = zip(line.get_xdata(), line.get_ydata(), strict=True)  # type: ignore[arg-type]
            label = _label(line) or self._name_of(line)
            if line.get_marker() in ("None", None, "", " ") and label is None:
                continue  # a limit or a rule, without a point of its own
            for x, y in points:
                yield from self._point(label, x, y, line.get_transform())
        for bars in self._axes.containers:
            yield from self._bars(bars)
        for collection in self._axes.collections:
            yield from self._collection(collection)
        for image in self._axes.images:
            yield from self._image(image)

    def _name_of(self, line: Any) -> str | None:
        """Of a line with error bars, which have the name; else of what looks so in a legend."""
        from matplotlib.container import ErrorbarContainer

        for bars in self._axes.containers:
            if isinstance(bars, ErrorbarContainer) and bars.lines[0] is line and _label(bars):
                return _label(bars)
        return self._legend.get((to_hex(line.get_color()), str(line.get_marker())))

    @functools.cached_property
    def _legend(self) -> dict[tuple[str, str], str]:
        """Names by colour and marker."""
        found = {}
        for legend in (*self._figure.legends, self._axes.get_legend()):
            for line in () if legend is None else legend.get_lines():
                look = to_hex(line.get_color()), str(line.get_marker())
                found[look] = str(line.get_label())
        return {look: name for look, name in found.items() if not name.startswith("_")}

    def _point(self, label: str | None, x: Any, y: Any, transform: Any) -> Iterator[Mark]:
        try:
            numbers = float(self._axes.convert_xunits(x)), float(self._axes.convert_yunits(y))
        except (TypeError, ValueError):
            return
        place = transform.transform(numbers)
        if not all(map(math.isfinite, (*place, *numbers))):
            return
        if self._axes.bbox.padded(2).contains(*place):
            said = f"{self._axis('x', numbers[0])}; {self._axis('y', numbers[1])}"
            yield Mark(*self._from_top(*place), self._words(label, said))

    def _bars(self, bars: Any) -> Iterator[Mark]:
        from matplotlib.container import BarContainer

        if not isinstance(bars, BarContainer):
            return
        across = bars.orientation == "horizontal"
        ends = ("y", "x") if across else ("x", "y")
        for bar in bars:
            size = bar.get_width() if across else bar.get_height()
            begin = bar.get_y() if across else bar.get_x()
            where = begin + (bar.get_height() if across else bar.get_width()) / 2
            box = bar.get_window_extent()
            if math.isfinite(size) and box.width and box.height:
                said = f"{self._axis(ends[0], where)}; {self._axis(ends[1], size)}"
                yield self._box(box.get_points().flatten(), self._words(_label(bars), said))

    def _collection(self, collection: Any) -> Iterator[Mark]:
        from matplotlib.collections import PathCollection, PolyCollection, QuadMesh

        if isinstance(collection, PolyCollection) and _label(collection):
            yield from self._spans(collection)
        elif isinstance(collection, PathCollection):
            points: Any = collection.get_offsets()
            for x, y in points:
                yield from self._point(_label(collection), x, y, self._axes.transData)
        elif isinstance(collection, QuadMesh) and collection.get_array() is not None:
            corners: Any = collection.get_coordinates()
            array: Any = collection.get_array()
            values = array.reshape(len(corners) - 1, len(corners[0]) - 1)
            for row, column in np.ndindex(values.shape):
                ends = (*corners[row, column], *corners[row + 1, column + 1])
                yield from self._field(ends, values[row, column])

    def _spans(self, collection: Any) -> Iterator[Mark]:
        """Bars from one value to another, as those of a timeline; what is no box has no mark."""
        for path in collection.get_paths():
            if len(path.vertices) != _BOX_CORNERS:
                continue
            (begin, low), (end, high) = path.get_extents().get_points()
            corners = self._axes.transData.transform([(begin, low), (end, high)]).flatten()
            said = f"{self._axis('x', begin)} to {end:.4g}"
            yield self._box(corners, self._words(_label(collection), said))

    def _image(self, image: Any) -> Iterator[Mark]:
        """What is written in its fields, else their values; those of colours alone tell nothing."""
        left, right, bottom, top = image.get_extent()
        values = image.get_array()
        rows, columns = values.shape[:2]
        written = {
            tuple(round(float(end)) for end in text.get_position()): text.get_text()
            for text in self._axes.texts
        }
        xs, ys = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
        if image.origin == "lower":
            ys = ys[::-1]
        for row, column in np.ndindex(rows, columns):
            value = written.get((column, row))
            if value is None and values.ndim == 2:
                value = values[row, column]
            if value is not None:
                yield from self._field((xs[column], ys[row], xs[column + 1], ys[row + 1]), value)

    def _field(self, ends: tuple[Any, ...], value: Any) -> Iterator[Mark]:
        if not isinstance(value, str):
            if np.ma.is_masked(value) or not math.isfinite(float(value)):
                return
            value = f"{float(value):.3g}"
        middle = [
            math.sqrt(low * high) if scale == "log" else (low + high) / 2
            for low, high, scale in (
                (ends[0], ends[2], self._axes.get_xscale()),
                (ends[1], ends[3], self._axes.get_yscale()),
            )
        ]
        said = f"{self._axis('x', middle[0])}; {self._axis('y', middle[1])}: {value}"
        corners = self._axes.transData.transform([ends[:2], ends[2:]]).flatten()
        yield self._box(corners, self._words(None, said))

    def _box(self, ends: Any, text: str) -> Mark:
        """`ends` are two corners in pixels, x y x y."""
        left, top = self._from_top(min(ends[0], ends[2]), max(ends[1], ends[3]))
        wide, high = abs(ends[2] - ends[0]) * self._scale, abs(ends[3] - ends[1]) * self._scale
        return Mark(left, top, text, wide, high)

    def _from_top(self, x: float, y: float) -> tuple[float, float]:
        return x * self._scale, (self._figure.bbox.height - y) * self._scale

    def _axis(self, which: str, value: float) -> str:
        """A value as its axis calls it."""
        label, ticks = self._ticks(which)
        named = ticks.get(value, "")
        is_plain = not named or "$" in named or _number(named) == value  # $: as 10^2 in mathtext
        shown = f"{value:.4g}" if is_plain else named
        return f"{label} {shown}".strip()

    @functools.cache  # noqa: B019 - as long as its panel
    def _ticks(self, which: str) -> tuple[str, dict[float, str]]:
        axis = self._axes.xaxis if which == "x" else self._axes.yaxis
        texts = [tick.get_text() for tick in axis.get_ticklabels()]
        return axis.get_label().get_text(), dict(zip(axis.get_ticklocs(), texts, strict=False))

    def _words(self, label: str | None, said: str) -> str:
        named = ", ".join(name for name in (self._title, label) if name)
        return " ".join((f"{named}: {said}" if named else said).split())


def _number(text: str) -> float:
    try:
        return float(text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return math.nan


def _label(artist: Any) -> str | None:
    label = str(artist.get_label() or "")
    return None if label.startswith("_") or not label else label
