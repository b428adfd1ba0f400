"""Numbers in README.md and results/README.md stand on committed rows.

`results/claims.yaml` lists them: where the sentence is, what it says, and which rows say so. Its
value is the median of a column over the rows that `where` picks; with `over` it is a ratio to the
median over others. `repeat` pairs them, where both have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tpi_bench.report.folder import read_runs

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = yaml.safe_load((ROOT / "results" / "claims.yaml").read_text())


def value_of(claim: dict[str, Any]) -> float:
    runs = read_runs(ROOT / "results" / claim["folder"])
    column = claim.get("column", "token_latency_s")
    return float(by_repeat(runs, claim, column).median())


def by_repeat(runs: pd.DataFrame, claim: dict[str, Any], column: str) -> pd.Series:
    rows = runs.query(claim["where"])
    assert len(rows), f"no row of {claim['folder']} where {claim['where']}"
    values = rows.groupby("repeat")[column].median()
    if "over" in claim:
        other = {"folder": claim["folder"], **claim["over"]}
        values = values / by_repeat(runs, other, other.get("column", column))
    return values.dropna()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim['folder']}: {claim['text']}")
def test_a_claim_stands_on_its_rows(claim: dict[str, Any]) -> None:
    text = " ".join((ROOT / claim["document"]).read_text().split())
    assert " ".join(claim["text"].split()) in text
    assert value_of(claim) == pytest.approx(claim["value"], rel=claim.get("tolerance", 0.02))
    assert claim["said"] in claim["text"]


def test_reference_rows_are_of_commits_that_are_known() -> None:
    """Every folder of results has rows, and each of them its commit."""
    folders = [path.parent for path in (ROOT / "results").glob("*/runs.parquet")]
    assert len(folders) >= 9
    for folder in folders:
        assert read_runs(folder)["commit"].notna().all(), folder
