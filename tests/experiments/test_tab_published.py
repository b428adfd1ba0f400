"""What others published beside ours: each figure once, with its ratio and a reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments import tab_published
from experiments.tab_published import Compared

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def found() -> list[Compared]:
    return tab_published.compared(RESULTS)


def test_every_figure_has_a_reason_and_stands_once(found: list[Compared]) -> None:
    lines = tab_published.table(found)
    assert len(lines) == len(found) > 100
    assert lines.why.str.len().min() > 20
    assert not lines.duplicated(["table", "setting", "quantity"]).any()
    assert (lines.ratio == lines.ours / lines.theirs).all()


def test_theirs_are_what_the_paper_has(found: list[Compared]) -> None:
    theirs = {(each.table, each.setting, each.quantity): each.theirs for each in found}
    by_words = {f"{table}: {setting}": value for (table, setting, _), value in theirs.items()}
    assert theirs["1 without a window", "llama2_3b, 8 devices", "token"] == 1.0
    assert theirs["3 and 8", "llama2_7b, tpi, 4 devices", "TTFT"] == 6
    assert by_words["2 and 6 with a window: llama2_70b, 8 devices, window 2"] == pytest.approx(
        3.1 * 2**30 / 1e9
    )
    assert theirs["prima.cpp", "llama3.1_70b, q4, its ring on its four", "token"] == 0.674


def test_the_committed_table_is_of_the_committed_rows(found: list[Compared]) -> None:
    """Else make it anew: `python -m experiments.tab_published results`."""
    lines = tab_published.table(found).to_csv(index=False, float_format="%.4g")
    assert lines == (RESULTS / "tab_published" / "tab_published.csv").read_text()


def test_a_group_is_summed_up() -> None:
    several = [
        Compared(table="t", setting=str(ours), quantity="token", theirs=2, ours=ours, folder="f")
        for ours in (1.0, 2.0, 4.0)
    ]
    (line,) = tab_published.summary(several).to_dict("records")
    assert line == {
        "table": "t",
        "quantity": "token",
        "figures": 3,
        "ours over theirs": "1.00 [0.50, 2.00]",
        "within a quarter": "1 of 3",
    }


def test_as_typed(tmp_path: Path) -> None:
    """Table and figure are written beside the folders; where there are none it says so."""
    shutil.copytree(RESULTS / "tab_memory", tmp_path / "tab_memory")

    def typed(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "experiments.tab_published", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = typed(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = pd.read_csv(tmp_path / "tab_published" / "tab_published.csv")
    assert set(lines.folder) == {"tab_memory"}
    assert (tmp_path / "tab_published" / "tab_published.png").stat().st_size > 10_000
    refused = typed(tmp_path / "tab_published")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "give results" in refused.stderr
