"""`task=report` and `task=ledger`, typed: of stored folders, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT, run_here
from tpi_bench.app.main import main

RESULTS = ROOT / "results"
KEEP = str(RESULTS / "fig_keep")


def typed(*arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error."""
    done = run_here(main, list(arguments))
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    folders = [str(RESULTS / name) for name in ("fig_window", "fig_keep")]
    notes = f"notes={RESULTS / 'README.md'}"
    status, shown, told = typed("task=report", *folders, f"output={path}", notes)
    assert status == 0, told
    assert shown.startswith(f"{path}: 2 experiments, ")
    return path.read_text()


def test_a_page_of_two_folders(page: str) -> None:
    assert page.count('<svg class="figure"') == 2
    assert page.count('class="mark"') > 100
    assert '<h2 id="how-large-a-window">' in page
    assert "python -m tpi_bench +experiment=fig_window" in page
    assert len(re.findall(r'<tr data-verdict="', page)) == 31
    assert page.count('data-verdict="holds"') >= 2  # of these folders; others are not there
    assert "run python -m tpi_bench +experiment=fig_fidelity" in page
    assert "A window of two blocks is enough." in page
    assert "Which allreduce on which network?" not in page  # whose rows were not given
    assert "What is measured, and how" in page


def test_it_loads_nothing(page: str) -> None:
    assert not re.search(r'\b(?:src|href)="(?!#|data:|https://arxiv|https?://)', page)
    assert not re.search(r"<(?:link|script|img|iframe)[^>]*(?:src|href)=\"https?:", page)
    assert "@import" not in page
    assert "url(http" not in page


def test_every_link_on_it_leads_somewhere(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    shutil.copytree(RESULTS / "fig_keep", own, ignore=shutil.ignore_patterns("*.png", "*.pdf"))
    (own / "config.yaml").unlink()
    status, shown, told = typed("task=report", str(own), "report=json")
    assert status == 0, told
    said = json.loads(shown)
    assert (said["page"], said["experiments"]) == (str(own / "report.html"), 1)
    assert said["verdicts"]["holds"] == 0
    assert "no claim can be judged from these folders alone" in told
    page = (own / "report.html").read_text()
    assert "The claims" not in page
    assert "<svg class" not in page  # nothing says who draws it
    assert "flexinfer" in page


def test_the_ledger_on_a_terminal_and_as_json() -> None:
    status, shown, _ = typed("task=ledger", str(RESULTS / "fig_window"))
    assert status == 0
    assert shown.startswith(" 14. A window of two blocks is enough.")
    assert "\n     HOLDS: " in shown
    assert "\nnot shown for want of rows (python -m tpi_bench +experiment=NAME" in shown
    assert "\n     1: tab_memory and fig_scaling\n" in shown
    status, shown, _ = typed("task=ledger", str(RESULTS / "fig_window"), "report=json")
    claims = {claim["question"]: claim for claim in json.loads(shown)["claims"]}
    assert claims[14]["verdict"] == "holds"
    assert 1 <= claims[14]["values"]["one"]["value"] < 1.2
    assert claims[1]["missing"] == ["tab_memory", "fig_scaling"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=report", "nowhere"], "nowhere is no folder; give folders with runs.parquet"),
        (["task=report", "tests"], "tests holds no results; give folders with runs.parquet"),
        (["task=report", "outptu=x"], "there is no outptu here; did you mean output?"),
        (["task=ledger", "output=x"], "there is no output here"),
        (["task=report", KEEP, "notes=no.md"], "notes=no.md cannot be read: No such"),
        (["task=report", KEEP, "ledger=no.yaml"], "ledger=no.yaml: there is no such"),
        (["task=ledger", KEEP, "ledger=README.md"], "ledger=README.md cannot be read"),
        (["task=report", KEEP, "output=README.md/x", "notes=none"], "cannot be written"),
        (["task=report", "report=xml"], "report=xml is not allowed; it may be text or json"),
    ],
)
def test_what_makes_no_page_is_told_in_a_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    status, shown, told = typed(*arguments)
    assert (status, shown) == (2, "")
    *drawn, error = told.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert all(line.startswith(("drawing ", "note: ")) for line in drawn)
