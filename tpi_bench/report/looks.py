"""How everything looks that figures have in common: the only place that says so.

A system has one colour and one marker in every figure, by the `label` of its rows; its variants (a
window, a precision) fill the marker otherwise or are dotted. What is no system has other colours:
shades of one ramp where there is an order (bits, memory, rates, sizes), and a few of their own for
where a token's time goes. What others published is a black cross, a physical limit is dashed or a
black tick. The tests hold these colours apart for the colour-blind, and every figure to them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Look:
    """Of a system: a colour that is told apart by the colour-blind, and a marker."""

    colour: str
    marker: str


# By label. Two that share a colour are of a kind, and in no figure together without their markers.
SYSTEMS = {
    "TPI star": Look("#0076e0", "o"),
    "TPI direct": Look("#ff4700", "^"),
    "TPI ring": Look("#009c5f", "D"),
    "TPI tree": Look("#ffc200", "s"),
    "pipeline": Look("#601056", "v"),
    "EdgeShard": Look("#ceacd8", "<"),
    "Jupiter": Look("#ceacd8", "p"),
    "Galaxy": Look("#80acff", "P"),
    "prima": Look("#0019a8", "h"),
    "dllama": Look("#93a73b", "X"),
    "hybrid": Look("#93a73b", "8"),
    "FlexInfer": Look("#035c41", ">"),
    "llama.cpp": Look("#710601", "d"),
    "llama.cpp RPC": Look("#710601", "H"),
    "Transformers": Look("#d2c782", "*"),
    "Accelerate": Look("#8766aa", "p"),
    "faulted": Look("#8766aa", "4"),
    "mmap": Look("#a7d0b9", "d"),
    "blocking": Look("#767a87", "s"),
}
_STRANGERS = ("#767a87", "#710601", "#93a73b")  # for systems that somebody added
_STRANGE_MARKERS = "*hX8pH"
_COLLECTIVES = ("star", "tree", "ring", "direct")
_FILLS = ("full", "none", "left", "right", "top", "bottom")
# Markers and lines of a system's variants; dashed are limits.
_VARIANTS = (
    ("full", "-"),
    ("none", "-"),
    ("full", ":"),
    ("none", ":"),
    ("full", "-."),
    ("none", "-."),
)

# Where a token's time goes.
TIMES = {
    "compute": "#4477AA",
    "links": "#EE7733",
    "loads": "#AA3377",
    "waits": "#CCCCCC",
    "reads": "#EE99AA",  # of the disk, in the background
    "sampling": "#222255",
    "other": "#99DDFF",
}
PAPER: dict[str, Any] = {"color": "k", "marker": "x", "linestyle": "", "markersize": 5, "zorder": 4}
LIMIT: dict[str, Any] = {"color": "0.4", "linestyle": "--", "linewidth": 0.7}
LIMIT_TICK: dict[str, Any] = {"color": "k", "linestyle": "", "markersize": 5}
ALONE = "0.35"  # level lines of one device


def system_of(name: str) -> str | None:
    """The system that a line is of, by how its name begins: `TPI star window 2, 4 devices`."""
    found = [
        label for label in SYSTEMS if name == label or name.startswith((f"{label} ", f"{label},"))
    ]
    return max(found, key=len) if found else None


def look_of(name: str) -> Look:
    """Of a line by its name; a collective is the TPI that it is the allreduce of."""
    label = system_of(f"TPI {name}" if name in _COLLECTIVES else name)
    if label is not None:
        return SYSTEMS[label]
    number = zlib.crc32(name.encode())
    return Look(
        _STRANGERS[number % len(_STRANGERS)], _STRANGE_MARKERS[number % len(_STRANGE_MARKERS)]
    )


def line_styles(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What matplotlib is told of each line: colour and marker of its system, filled by variant."""
    seen: dict[Look, int] = {}
    styles: dict[str, dict[str, Any]] = {}
    for line in dict.fromkeys(lines):
        look = look_of(line)
        fill, dashes = _VARIANTS[seen.get(look, 0) % len(_VARIANTS)]
        seen[look] = seen.get(look, 0) + 1
        styles[line] = {"color": look.colour, "marker": look.marker, "fillstyle": fill}
        styles[line]["linestyle"] = dashes
    return styles


def point_styles(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """As `line_styles`, of points that no line connects: a variant fills another half."""
    seen: dict[Look, int] = {}
    styles = line_styles(lines)
    for line, style in styles.items():
        look = look_of(line)
        style |= {"fillstyle": _FILLS[seen.get(look, 0) % len(_FILLS)], "linestyle": ""}
        seen[look] = seen.get(look, 0) + 1
    return styles


def light(colour: str, share: float = 0.55) -> tuple[float, float, float]:
    """A colour mixed with white, for fields that have words on them."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def shades(names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Colours of what has an order, from dark to light, in the order of the names."""
    import matplotlib

    ramp = matplotlib.colormaps["viridis"]
    last = max(1, len(names) - 1)
    return {name: ramp(0.8 * number / last)[:3] for number, name in enumerate(names)}
