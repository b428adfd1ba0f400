"""Colours and markers of systems: told apart by the colour-blind too, and the same everywhere."""

from __future__ import annotations

import itertools

import pytest

from tests.helpers.figures import distance
from tpi_bench.report import looks

LEAST = 15.0  # in Lab; two greys of 1 % and 2 % differ by about 2
SYSTEMS = sorted(looks.SYSTEMS)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(SYSTEMS, 2)))
def test_two_systems_are_told_apart(first: str, second: str) -> None:
    """By their colours, or where they are of a kind by their markers."""
    a, b = looks.SYSTEMS[first], looks.SYSTEMS[second]
    assert a != b
    assert a.marker != b.marker or distance(a.colour, b.colour) >= LEAST
    assert a.colour == b.colour or distance(a.colour, b.colour) >= LEAST


def test_parts_of_a_token_are_told_apart() -> None:
    shown = ("links", "compute", "loads", "waits", "other")  # side by side in a bar
    for first, second in itertools.combinations(shown, 2):
        assert distance(looks.TIMES[first], looks.TIMES[second]) >= LEAST, (first, second)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_neighbouring_shades_are_told_apart(count: int) -> None:
    colours = list(looks.shades([str(number) for number in range(count)]).values())
    assert all(distance(*pair) >= LEAST for pair in itertools.combinations(colours, 2))


def test_the_colour_blind_see_less() -> None:
    """The check can fail: a red and a green that differ for others."""
    assert distance("#b05040", "#7f7a2a") < LEAST


def test_a_line_looks_like_its_system() -> None:
    star = looks.SYSTEMS["TPI star"]
    for line in ("TPI star", "TPI star window 2", "TPI star, 4 devices", "star"):
        assert looks.look_of(line) == star
    assert looks.look_of("llama.cpp RPC") == looks.SYSTEMS["llama.cpp RPC"]
    assert looks.look_of("llama.cpp Q8_0") == looks.SYSTEMS["llama.cpp"]
    assert looks.system_of("TPI stars") is None


def test_a_system_of_ones_own_has_a_look_that_stays() -> None:
    assert looks.system_of("my_system") is None
    assert looks.look_of("my_system") == looks.look_of("my_system")


def test_variants_of_a_system_are_told_apart() -> None:
    lines = ["TPI star", "TPI star window 2", "TPI star window auto", "pipeline"]
    styles = looks.line_styles(lines)
    assert len({(s["fillstyle"], s["linestyle"]) for s in list(styles.values())[:3]}) == 3
    assert "--" not in {style["linestyle"] for style in styles.values()}  # which limits are
    points = looks.point_styles(lines)
    assert len({style["fillstyle"] for style in list(points.values())[:3]}) == 3
    for each in (styles, points):
        assert len({each[line]["color"] for line in lines}) == 2
        assert each["pipeline"]["fillstyle"] == "full"
