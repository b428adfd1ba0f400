"""The page of all committed results in a real browser: desktop, phone, dark, print, no script.

`make test_report` runs these; they are skipped where playwright or a browser is missing.
Screenshots are left in the folder that TPI_BENCH_SCREENSHOTS names, to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import ROOT, run_here
from tpi_bench.app.main import main
from tpi_bench.report.ledger.entries import read_entries

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (make test_report installs it)"
)
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOOKS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "dark_phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
# What reaches out of the page, and text that its box cuts; what scrolls by itself may.
CUT = """() => [...document.querySelectorAll("body *")].filter((each) => {
  if (each.closest(".scroll, svg, .skip, [hidden], select")) return false;
  if (!each.checkVisibility()) return false;
  const box = each.getBoundingClientRect();
  const style = getComputedStyle(each);
  const hides = style.overflowX !== "visible" && each.scrollWidth > each.clientWidth + 1;
  const wide = document.documentElement.clientWidth;
  const out = box.width > 0 && (box.right > wide + 1 || box.left < -1);
  return out || hides;
}).map((each) => `${each.tagName} ${each.className}: ${each.textContent.slice(0, 60)}`)"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    done = run_here(main, ["task=report", str(ROOT / "results"), f"output={path}"])
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)} starts ({error.message[:80]})")
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, page_file: Path) -> Iterator[Any]:
    """Opens it with a look; tells what its console said, and what it asked the network for."""
    contexts = []

    def opened(**look: Any) -> Any:
        context = browser.new_context(**look)
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(page_file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


def photograph(page: Any, name: str, **how: Any) -> None:
    folder = os.environ.get("TPI_BENCH_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), **how)


def test_it_is_small_enough_to_send(page_file: Path) -> None:
    assert page_file.stat().st_size < 8e6


@pytest.mark.parametrize("name", LOOKS)
def test_each_look(open_page: Any, page_file: Path, name: str) -> None:
    page = open_page(**LOOKS[name])
    assert page.locator("#claims tbody tr").count() == len(read_entries())
    assert page.evaluate(CUT) == []
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("data:", page_file.as_uri()))] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background != "rgb(255, 255, 255)") == name.startswith("dark")
    photograph(page, name)
    for place in ("ledger", "rows-fig_lan", "rows-fig_latency", "rows-fig_fidelity", "hosts"):
        page.evaluate("id => document.getElementById(id).scrollIntoView()", place)
        photograph(page, f"{name}_{place}")


@pytest.mark.parametrize("name", ["desktop", "dark", "phone"])
def test_accessible(open_page: Any, name: str) -> None:
    """By axe: contrast, names, headings, tables, keyboard; not within figures, which are images."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(**LOOKS[name])
    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    found = axe.Axe().run(page, {"exclude": ["svg.figure"]}, options).response["violations"]
    told = [f"{each['id']}: {each['nodes'][0]['html'][:150]}" for each in found]
    assert told == []


def questions(page: Any) -> list[int]:
    shown = page.locator("#claims tbody tr:visible td.number").all_inner_texts()
    return [int(text) for text in shown]


def test_sorting(open_page: Any) -> None:
    page = open_page(**LOOKS["desktop"])
    everyone = questions(page)
    assert everyone == sorted(everyone)
    number, _, verdict = page.locator("#claims thead th button").all()
    number.click()
    number.click()
    assert questions(page) == everyone[::-1]
    assert page.locator("#claims th").first.get_attribute("aria-sort") == "descending"
    verdict.click()
    rows = page.locator("#claims tbody tr")
    verdicts = [row.get_attribute("data-verdict") for row in rows.all()]
    assert verdicts == sorted(verdicts)
    assert page.locator("#claims th").first.get_attribute("aria-sort") is None
    assert page.said == []


def test_numbers_are_sorted_as_numbers(open_page: Any) -> None:
    page = open_page(**LOOKS["desktop"])
    table = page.locator("#table-rows-fig_scaling")
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    heads = table.locator("thead th").all_inner_texts()
    column = next(i for i, text in enumerate(heads) if text.startswith("ms a token"))
    table.locator("thead th button").nth(column).click()
    cells = table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
    numbers = [float(text.split()[0]) for text in cells if text != "-"]
    assert len(numbers) > 20
    assert numbers == sorted(numbers)
    assert all(text == "-" for text in cells[len(numbers) :])


def test_filtering(open_page: Any) -> None:
    page = open_page(**LOOKS["desktop"])
    everyone = questions(page)
    tools = page.locator(".tools[data-for=claims]")
    tools.locator("select").select_option("holds")
    held = questions(page)
    assert 0 < len(held) < len(everyone)
    assert tools.locator("output").inner_text() == f"{len(held)} of {len(everyone)}"
    tools.locator("select").select_option("")
    tools.locator("input").fill("distributed-llama")
    assert 26 in questions(page)
    assert len(questions(page)) < 6
    tools.locator("input").fill("no such word")
    assert questions(page) == []
    tools.locator("input").fill("")
    assert questions(page) == everyone


def test_a_value_where_the_pointer_is(open_page: Any) -> None:
    page = open_page(**LOOKS["desktop"])
    marks = page.locator("#rows-fig_latency .mark")
    assert marks.count() > 50
    marks.nth(10).scroll_into_view_if_needed()
    marks.nth(10).hover(force=True)
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert any(letter.isdigit() for letter in tip.inner_text())
    photograph(page, "tip")
    page.mouse.move(1, 1)
    assert not tip.is_visible()


def test_a_link_to_rows_opens_them(open_page: Any) -> None:
    page = open_page(**LOOKS["desktop"])
    page.locator("#claims td.rows a", has_text="fig_allreduce").first.click()
    assert page.locator("#rows-fig_allreduce details").first.get_attribute("open") is not None


def test_it_is_read_without_script(open_page: Any) -> None:
    page = open_page(java_script_enabled=False, **LOOKS["desktop"])
    assert page.locator("#claims tbody tr").count() == len(read_entries())
    assert page.locator("#claims .badge").first.is_visible()
    assert page.locator("#rows-fig_latency svg.figure").is_visible()
    assert page.locator("#rows-fig_latency .mark title").first.text_content()
    assert page.locator(".tools input").count() == 0


def test_print(open_page: Any, tmp_path: Path) -> None:
    page = open_page(viewport={"width": 794, "height": 1123}, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".tools").first.is_visible()
    assert page.evaluate(CUT) == []
    photograph(page, "print")
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    folder = os.environ.get("TPI_BENCH_SCREENSHOTS")
    if folder:
        shutil.copy(tmp_path / "report.pdf", folder)
