"""A figure as SVG for a page, light and dark, that tells its values (`marks.py`).

Text is drawn as shapes, so that nothing is cut or moves where a font is missing; neutral colours
become the page's own (CSS variables), but on maps, whose colours are data.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpi_bench.report.page.marks import marks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What neutral colours are written as, to be found again in the text.
_INK, _GRID, _PAPER = "#010203", "#c9cacb", "#fdfefd"
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)", _PAPER: "var(--paper)"}
_DARK, _LIGHT = 0.55, 0.95  # greys between are a grid's
_GLYPH = re.compile(r'<path id="([\w-]+)" d="[^"]*" transform="scale\(0\.015625\)"/>')
_NUMBERS = re.compile(r'(\b(?:d|x|y)=")([^"]*)')
_LETTER = re.compile(r'<use (href="[^"]+") transform="translate\((-?[\d.]+) (-?[\d.]+)\)"/>')
_ID = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')
_UNUSED = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
_NAMED = re.compile(r' id="[A-Za-z2.]+_\d+"')  # of parts of a figure, which nothing refers to


@dataclass(frozen=True)
class Picture:
    """A figure, and the shapes of its letters by their ids, which figures of a page share."""

    svg: str
    glyphs: Mapping[str, str]


def svg_of(figure: Figure, name: str, words: str) -> Picture:
    """`name` makes ids of the figure its own on a page; `words` say what it shows."""
    import matplotlib.pyplot as plt

    _with_own_neutrals(figure)
    text = io.StringIO()
    with plt.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", facecolor="none", metadata={"Date": None})
    marks = "".join(mark.svg() for mark in marks_of(figure))
    plt.close(figure)
    drawn, glyphs = _compact(text.getvalue(), name)
    size = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', drawn)
    assert size is not None
    attributes = (
        f'class="figure" role="img" aria-label="{html.escape(words)}" {size[0]} '
        f'style="--width: {float(size[1]):.0f}" xmlns="http://www.w3.org/2000/svg"'
    )
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 :].replace("</svg>", "").strip()
    return Picture(f"<svg {attributes}>{body}<g>{marks}</g></svg>", glyphs)


def glyphs_svg(glyphs: Mapping[str, str]) -> str:
    """What the figures of a page draw their text with, once."""
    paths = "".join(glyphs[name] for name in sorted(glyphs))
    return f'<svg width="0" height="0" class="glyphs" aria-hidden="true"><defs>{paths}</defs></svg>'


def _compact(written: str, name: str) -> tuple[str, dict[str, str]]:
    """Without what a page does not need, and letters apart."""
    drawn = written[written.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, variable)
    drawn = _NAMED.sub("", _UNUSED.sub("", drawn)).replace("xlink:href=", "href=")
    glyphs = {each[1]: " ".join(each[0].split()) for each in _GLYPH.finditer(drawn)}
    drawn = _GLYPH.sub("", drawn)
    drawn = _ID.sub(lambda each: each[0] if each[2] in glyphs else f"{each[1]}{name}-{each[2]}", drawn)  # fmt: skip # noqa: E501
    drawn = _NUMBERS.sub(_rounded, drawn)
    drawn = _LETTER.sub(_placed, drawn)
    return re.sub(r">\s+<", "><", drawn), glyphs


def _rounded(each: re.Match[str]) -> str:
    """A tenth of a point is enough for a line, not for a scale."""
    return each[1] + " ".join(re.sub(r"(-?\d+\.\d)\d+", r"\1", each[2]).split())


def _placed(each: re.Match[str]) -> str:
    """A letter at its place in a line, in less text; a hundred of its units are an em."""
    x, y = (f"{float(number):.1f}".removesuffix(".0") for number in each.group(2, 3))
    return f'<use {each[1]} x="{x}"' + (f' y="{y}"' if float(y) else "") + "/>"


def _with_own_neutrals(figure: Figure) -> None:
    """Greys of the figure's frame become those that the page replaces."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    kept, grids = set[int](), set[int]()
    has_map = any(map(_is_map, figure.axes))  # whose legend shows colours as the map does
    for axes in figure.axes:
        if _is_map(axes):
            kept |= {id(part) for part in (*axes.texts, *axes.lines, *axes.patches, axes.patch)}
        else:
            axes.patch.set_facecolor("none")
        grids |= {id(line) for line in (*axes.get_xgridlines(), *axes.get_ygridlines())}
    parts: Any = figure.findobj(lambda part: id(part) not in kept)
    for part in parts:
        if isinstance(part, Text):
            part.set_color(_own(part.get_color()))
        elif isinstance(part, Line2D):
            part.set_color(_GRID if id(part) in grids else _own(part.get_color()))
            part.set_markerfacecolor(_own(part.get_markerfacecolor()))
            part.set_markeredgecolor(_own(part.get_markeredgecolor()))
        elif isinstance(part, Patch):
            face = part.get_facecolor()
            part.set_facecolor(_on_white(face) if has_map else _own(face))
            part.set_edgecolor(_own(part.get_edgecolor()))
        elif hasattr(part, "get_edgecolors") and len(part.get_edgecolors()) == 1:
            part.set_edgecolor(_own(tuple(part.get_edgecolors()[0])))  # error bars and the like


def _own(colour: Any) -> Any:
    """Dark greys are ink, light ones a grid, white is paper; others stay, as what is clear does."""
    from matplotlib.colors import to_rgba

    if isinstance(colour, str) and colour in ("none", "auto"):
        return colour
    red, green, blue, alpha = to_rgba(colour)
    if max(red, green, blue) - min(red, green, blue) > 0.06 or alpha == 0:
        return colour
    own = _INK if red < _DARK else _GRID if red < _LIGHT else _PAPER
    return own if alpha == 1 else (own, alpha)


def _on_white(colour: Any) -> Any:
    """As it looks on white paper, where it is a colour that lets some of it through."""
    from matplotlib.colors import to_rgba

    own = _own(colour)
    *parts, alpha = to_rgba(colour)
    return tuple(1 - alpha * (1 - part) for part in parts) if own is colour and alpha else own


def _is_map(axes: Axes) -> bool:
    """Whether its background is data."""
    from matplotlib.collections import QuadMesh

    return bool(axes.images) or any(isinstance(each, QuadMesh) for each in axes.collections)
