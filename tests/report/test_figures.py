"""Lines that hide others are named, names stand apart, and the checks of figures find faults."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from tests.helpers.figures import (
    cut_words,
    other_looks,
    small_words,
    unnamed_hidden_lines,
    words_of,
)
from tpi_bench.report import figures, hidden, looks


@pytest.fixture
def axes() -> Iterator[Any]:
    figure = figures.new_figure()
    yield figure.subplots()
    plt.close(figure)


def said(figure: Any) -> list[str]:
    return [" ".join(text.get_text().split()) for text in hidden.name_hidden(figure)]


def test_a_line_under_another_is_named(axes: Any) -> None:
    axes.plot([1, 2, 3], [1, 2, 3], label="below")
    axes.plot([1, 2, 3], [1, 2.001, 3], label="above")
    axes.plot([1, 2, 3], [3, 2.9, 1], label="elsewhere")
    assert unnamed_hidden_lines(axes.figure) == ["below under above"]
    assert said(axes.figure) == ["below is under above"]
    assert unnamed_hidden_lines(axes.figure) == []


def test_one_that_comes_out_once_is_named_too(axes: Any) -> None:
    axes.set_ylim(0, 10)
    axes.plot([1, 2, 4, 8], [1, 1, 1, 9], label="a")
    axes.plot([1, 2, 4, 8], [1, 1, 1, 1], label="b")
    axes.plot([1, 2], [5, 5], label="c")
    axes.plot([1, 2, 4], [5, 9, 9], label="d")  # meets c once only
    assert said(axes.figure) == ["a (mostly) is under b"]


def test_the_same_in_several_panels_is_said_once() -> None:
    figure = figures.new_figure()
    for axes in figure.subplots(1, 2):
        for name in ("a", "b", "c"):
            axes.plot([0, 1], [1, 2], label=name)
    assert said(figure) == ["a and b are under c (in 2 panels)"]
    plt.close(figure)


def test_the_note_covers_no_line(axes: Any) -> None:
    for name in ("a", "b"):
        axes.plot([0, 10], [0.5, 0.5], label=name)
    axes.set_ylim(0, 10)
    (text,) = hidden.name_hidden(axes.figure)
    box = text.get_window_extent().transformed(axes.transAxes.inverted())
    assert box.y0 > 0.06
    assert box.x1 <= 1


def test_names_at_the_ends_of_lines_stand_apart(axes: Any) -> None:
    for number, name in enumerate(("x", "y", "z")):
        axes.plot([0, 1], [1, 1 + number / 1000], color=f"C{number}", label=name)
    figures.name_ends(axes)
    axes.figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 3
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    assert {text.get_color() for text in axes.texts} == {"C0", "C1", "C2"}
    assert cut_words(axes.figure) == []


def test_faults_of_a_figure_are_found(axes: Any) -> None:
    axes.plot([0, 1], [0, 1], color="red", marker="o", label="TPI star")
    axes.plot([0, 1], [1, 0], **looks.line_styles(["pipeline"])["pipeline"], label="pipeline")
    axes.text(0.5, 0.5, "tiny", fontsize=5)
    far = axes.text(3, 0.5, "far away")
    far.set_in_layout(False)
    axes.figure.draw_without_rendering()
    assert small_words(axes.figure) == ["'tiny': 5 points"]
    assert cut_words(axes.figure) == ["far away"]
    (fault,) = other_looks(axes.figure)
    assert fault.startswith("TPI star: ")
    assert {"tiny", "far away"} <= {text.get_text() for text in words_of(axes.figure)}


def test_a_figure_that_is_drawn_again_is_the_same_file(axes: Any, tmp_path: Path) -> None:
    axes.plot([1, 2], [3, 4])
    png, pdf = figures.save_figure(axes.figure, tmp_path, "mine")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"CreationDate" not in pdf.read_bytes()
