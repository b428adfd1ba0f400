"""What a page is made of: notes cut into sections, figures that tell their values, folders."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.helpers.command_line import ROOT
from tpi_bench.report import figures
from tpi_bench.report.collection import collected, name_of
from tpi_bench.report.page.notes import notes_of, slug_of
from tpi_bench.report.page.page import Page
from tpi_bench.report.page.svg import glyphs_svg, svg_of

NOTES = """# Results

Some lead.

| folder | made by | what it shows |
|---|---|---|
| `fig_a`, `fig_b` | `command` | [how fast](#how-fast-is-it) |

## How fast is it?

![A beside B](fig_a/fig_a.png)

Text with a [file](../conf/README.md), a [section](#what-else), [the web](https://example.org)
and <script>alert(1)</script>.

| a | b |
|---|---|
| 1 | `x|y` |

## What else

- one
"""


def test_notes_become_sections_with_places_for_figures() -> None:
    notes = notes_of(NOTES)
    fast, other = notes.sections
    assert (fast.title, fast.slug) == ("How fast is it?", "how-fast-is-it")
    assert fast.folders == ["fig_a"]
    assert fast.parts[0].words == "A beside B"
    text = "".join(part.html for part in fast.parts)
    assert 'title="../conf/README.md"' in text  # no link: the page may be sent anywhere
    assert 'href="#what-else"' in text
    assert 'href="https://example.org"' in text
    assert "<script>" not in text
    assert 'tabindex="0"' in text
    assert "<li>one</li>" in other.parts[0].html
    assert notes.section_of == {"fig_a": "how-fast-is-it", "fig_b": "how-fast-is-it"}


def test_notes_of_a_folder_are_a_section_of_their_own() -> None:
    notes = notes_of("# Advice\n\nLead.\n\n## More\n\nText, [below](#more).\n", "advise")
    assert [(each.title, each.slug) for each in notes.sections] == [
        ("Advice", "of-advise"),
        ("More", "advise-more"),
    ]
    assert 'href="#advise-more"' in notes.sections[1].parts[0].html
    assert notes.section_of == {"advise": "of-advise"}


def test_slugs_are_those_of_github() -> None:
    assert slug_of("Is virtual time true?") == "is-virtual-time-true"
    assert slug_of("The paper's tables") == "the-papers-tables"


def marks(svg: str) -> list[str]:
    return [
        found.replace("&lt;", "<") for found in re.findall(r'class="mark"[^>]*><title>([^<]+)', svg)
    ]


def test_each_point_tells_its_value() -> None:
    figure = figures.new_figure()
    axes = figure.subplots()
    axes.plot([1, 2, 4], [10, 20, float("nan")], marker="o", label="TPI <star>")
    axes.plot([1, 4], [5, 5], "k--", linewidth=0.8)
    axes.set(xlabel="link latency (ms)", ylabel="time (s)")
    made = svg_of(figure, "one", "what it shows")
    assert marks(made.svg) == [
        "TPI &lt;star&gt;: link latency (ms) 1; time (s) 10".replace("&lt;", "<"),
        "TPI &lt;star&gt;: link latency (ms) 2; time (s) 20".replace("&lt;", "<"),
    ]
    root = ElementTree.fromstring(made.svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "what it shows"
    width = float(root.get("viewBox", "").split()[2])
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(circle.get("cx", "")) < width


def test_bars_and_fields_tell_theirs() -> None:
    figure = figures.new_figure(num_columns=2)
    left, right = figure.subplots(1, 2)
    left.bar(["tpi", "mmap"], [1.5, 3.0], label="q4")
    right.imshow(np.array([[1.25, 2.0], [np.nan, 4.0]]))
    right.set_title("fields")
    found = marks(svg_of(figure, "two", "").svg)
    assert found[:2] == ["q4: tpi; 1.5", "q4: mmap; 3"]
    assert [text for text in found if text.startswith("fields")] == [
        "fields: 0; 0: 1.25",
        "fields: 1; 0: 2",
        "fields: 1; 1: 4",
    ]


def test_a_timeline_tells_from_when_to_when() -> None:
    """Boxes of a timeline, and no mark for a surface of another shape."""
    figure = figures.new_figure(2.0)
    axes = figure.subplots()
    axes.broken_barh([(1.0, 2.5), (5.0, 1.0)], (0.0, 0.5), label="device 0 computes")
    axes.fill_between([0, 1, 2], [0, 1, 0], label="a surface")
    axes.set_xlabel("time (ms)")
    assert marks(svg_of(figure, "three", "").svg) == [
        "device 0 computes: time (ms) 1 to 3.5",
        "device 0 computes: time (ms) 5 to 6",
    ]


def test_figures_of_a_page_share_letters_and_nothing_else() -> None:
    made = []
    for name in ("one", "two"):
        figure = figures.new_figure()
        figure.subplots().plot([0, 1], [0, 1], marker="o")
        made.append(svg_of(figure, name, ""))
    ids = [set(re.findall(r'\bid="([^"]+)"', each.svg)) for each in made]
    assert not ids[0] & ids[1]
    letters = set(re.findall(r'\bid="([^"]+)"', glyphs_svg(made[0].glyphs | made[1].glyphs)))
    for own, each in zip(ids, made, strict=True):
        asked = set(re.findall(r'(?:href="|url\()#([^")]+)', each.svg))
        assert asked <= own | letters
        assert letters & asked
    assert "var(--ink)" in made[0].svg  # for light and dark
    assert "#262626" not in made[0].svg


def test_folders_by_name(tmp_path: Path) -> None:
    for name in (
        "fig_a",
        "more/fig_b",
        "runs/fig_c/2026-01-01_10-00-00",
        "reference/fig_a",
        ".fig_a.before",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "runs.parquet").touch()
    assert list(collected([tmp_path])) == ["fig_a", "more/fig_b"]
    own = tmp_path / "runs" / "fig_c" / "2026-01-01_10-00-00"
    assert name_of(own) == "fig_c"
    assert list(collected([tmp_path / "fig_a", own])) == ["fig_a", "fig_c"]
    (tmp_path / "other" / "fig_a").mkdir(parents=True)
    (tmp_path / "other" / "fig_a" / "runs.parquet").touch()
    with pytest.raises(ValueError, match="are both called fig_a; give one of them"):
        collected([tmp_path / "fig_a", tmp_path / "other" / "fig_a"])
    with pytest.raises(ValueError, match="nowhere is no folder; give folders with"):
        collected([tmp_path / "nowhere"])


def test_every_section_of_the_committed_notes_can_be_reached() -> None:
    notes = notes_of((ROOT / "results" / "README.md").read_text())
    slugs = {section.slug for section in notes.sections}
    assert set(notes.section_of.values()) <= slugs
    assert len(notes.sections) > 15


def test_a_folder_without_rows_has_its_picture(tmp_path: Path) -> None:
    (tmp_path / "fig_a").mkdir()
    image = tmp_path / "fig_a" / "fig_a.png"
    image.write_bytes(b"\x89PNG")
    (part, *_) = notes_of(NOTES, beside=tmp_path).sections[0].parts
    assert part.image == image
    assert Page.embedded(image) == "data:image/png;base64,iVBORw=="
    (tmp_path / "fig_a" / "runs.parquet").touch()
    assert Page.embedded(image) == ""  # it would be drawn, had it been given
    assert Page.embedded(tmp_path / "no.png") == ""
