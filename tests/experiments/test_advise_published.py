"""Published speeds beside the stored answers of `task=advise`, and these as they are told."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from experiments.advise_published import PUBLISHED, side_by_side
from experiments.fig_advise import DRAWING
from tests.helpers.command_line import ROOT, run_module
from tpi_bench.report.advice import Advice, Rows
from tpi_bench.report.advice_text import advice_text
from tpi_bench.report.results import load
from tpi_bench.report.rows import Record

STORED = ROOT / "results" / "advise"
FOLDERS = sorted(path.parent.name for path in STORED.glob("*/advice.json"))


def test_every_line_has_a_source_and_a_row_of_ours() -> None:
    lines = list(csv.DictReader(PUBLISHED.open()))
    assert len(lines) > 8
    assert all(line["source"] and float(line["token_latency_s"]) > 0 for line in lines)
    assert {line[key] for line in lines for key in ("folder", "best_folder")} <= set(FOLDERS)
    assert len(side_by_side(STORED)) == len(lines)


def test_it_is_typed_with_a_folder(tmp_path: Path) -> None:
    done = run_module("experiments.advise_published", str(STORED))
    assert done.returncode == 0, done.stderr
    assert "distributed-llama" in done.stdout
    done = run_module("experiments.advise_published", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} holds none of pis_8b_q4, paper_7b")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_stored_answer_is_told_from_its_rows(name: str) -> None:
    """Every number of the text is of a row that is there, or of `advice.json`."""
    results = load(STORED / name)
    advice = Advice.load(STORED / name)
    rows = Rows.of(Record(run=row, devices=results.device_rows(row)) for row in results.rows)
    text = advice_text(advice, rows)
    assert text.count("\n") > 10
    assert {line.point for line in advice.best} <= rows.runs.keys()
    best = min(
        row.token_latency_s
        for row in results.rows
        if row.experiment == "advise" and row.status == "ok" and row.prompt_tokens == 32
    )
    assert rows.runs[advice.best[0].point].token_latency_s == best


@pytest.mark.parametrize("name", FOLDERS)
def test_its_figure_names_ways_and_devices_as_its_table(name: str) -> None:
    folder = STORED / name
    rows = DRAWING.rows(DRAWING.stored(folder))
    table = (folder / "answer.txt").read_text().partition("perplexity*\n")[2].split("\n")
    assert len(rows) > 0
    for line, way, team in zip(table, rows.way, rows.team, strict=False):
        letters, _, names = team.partition(": ")
        assert re.match(rf"\d+ +{re.escape(way)}  +{letters}  ", line), (line, way, team)
        assert sum(
            int(part.partition(" x ")[0]) if " x " in part else 1 for part in (names.split(", "))
        ) == len(letters.split())
