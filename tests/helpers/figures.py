"""What is wrong with a drawn figure: small or cut-off words, other colours than the registry's,
hidden lines that nobody names. And how colours look to the colour-blind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from tpi_bench.report import hidden, looks

LEAST_POINTS = 6.0
# Linear sRGB as dichromats see it (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "all colours": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE = _XYZ.sum(axis=1)


def seen_as(colour: Any, sight: str) -> np.ndarray:
    """CIE Lab of a colour, as somebody sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = _XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / _WHITE
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(first: Any, second: Any) -> float:
    """How far two colours are apart in Lab, for whoever sees them nearest."""
    return min(
        float(np.linalg.norm(seen_as(first, sight) - seen_as(second, sight))) for sight in SIGHT
    )


def words_of(figure: Figure) -> list[Text]:
    """Every text that is shown."""
    unseen = {
        id(text)
        for axes in figure.axes
        for text in (axes.findobj(Text) if not axes.get_visible() else _undrawn_labels(axes))
    }
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in unseen
    ]


def _undrawn_labels(axes: Axes) -> Iterator[Text]:
    """Of ticks that matplotlib keeps outside of the limits, and does not draw."""
    for axis in (axes.xaxis, axes.yaxis):
        drawn = set(map(id, axis._update_ticks()))
        for tick in (*axis.majorTicks, *axis.minorTicks):
            if id(tick) not in drawn:
                yield from (tick.label1, tick.label2)


def small_words(figure: Figure) -> list[str]:
    return [
        f"{text.get_text()!r}: {text.get_fontsize():g} points"
        for text in words_of(figure)
        if text.get_fontsize() < LEAST_POINTS
    ]


def cut_words(figure: Figure) -> list[str]:
    """Texts that reach over the border of a laid-out figure by more than a pixel of 100 an inch."""
    width, height = figure.bbox.size
    slack = figure.dpi / 100
    found = []
    for text in words_of(figure):
        box = text.get_window_extent()
        if min(box.x0, box.y0) < -slack or box.x1 > width + slack or box.y1 > height + slack:
            found.append(text.get_text())
    return found


def other_looks(figure: Figure) -> list[str]:
    """Lines, fields and legends of systems that do not look as the registry says."""
    found = []
    for name, artist in _named(figure):
        if looks.system_of(name) is None:
            continue
        look = looks.look_of(name)
        if not _has_colour(artist, look.colour):
            found.append(f"{name}: {artist} is not {look.colour}")
        marker = artist.get_marker() if isinstance(artist, Line2D) else "None"
        if marker not in ("None", None, "", look.marker):
            found.append(f"{name}: marker {marker!r} is not {look.marker!r}")
    return found


def _named(figure: Figure) -> Iterator[tuple[str, Any]]:
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            yield str(name), handle[0] if isinstance(handle, tuple) and handle else handle
    for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
        if legend is not None:
            names = (text.get_text() for text in legend.get_texts())
            for handle, name in zip(legend.legend_handles, names, strict=True):
                yield name, handle[0] if isinstance(handle, tuple) else handle


def _has_colour(artist: Any, colour: str) -> bool:
    if isinstance(artist, Line2D):
        shown = artist.get_color()
    elif isinstance(artist, Patch):
        shown = artist.get_facecolor()
    elif isinstance(artist, Collection):
        shown = artist.get_edgecolor()[0]
    else:
        shown = artist[0].get_color() if artist[0] is not None else colour
    return same_color(shown, colour) or np.allclose(to_rgb(shown), looks.light(colour), atol=0.01)


def unnamed_hidden_lines(figure: Figure) -> list[str]:
    """Lines that lie under another one without the figure saying so."""
    said = " ".join(" ".join(text.get_text().split()) for text in words_of(figure))
    return [
        f"{name} under {above}"
        for axes in figure.axes
        for above, below in hidden.hidden_lines(axes).items()
        for name in below
        if " under " not in said or name not in said or above not in said
    ]
