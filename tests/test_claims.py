"""Numbers in README.md, results/README.md and results/advise/README.md stand on committed rows.

`results/claims.yaml` lists them: where the sentence is, what it says, and which rows say so. Its
value is the median of a column over the rows that `where` picks; with `over` it is a ratio to the
median over others. `repeat` pairs them, where both have it. What the sentence says is that value as
people write it: in ms, us or 1e9, as a share of a hundred, or as a multiple of `of` (a number that
others published, a count).
"""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tpi_bench.report.folder import ResultsFolder, read_runs

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = yaml.load(  # the loader in C, as it is read by each worker
    (ROOT / "results" / "claims.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
)


@functools.cache
def runs_of(folder: str, with_spans: bool = False) -> pd.DataFrame:
    """Of a folder's runs, or a table that a command of its own has kept.

    With what its drawing makes of their spans, where a claim says `spans: true`.
    """
    path = ROOT / "results" / folder
    if path.suffix == ".csv":
        return pd.read_csv(path)
    figure = ResultsFolder(path).figure
    if with_spans and figure:
        return importlib.import_module(figure).DRAWING.stored(path)
    return read_runs(path)


@functools.cache
def words_of(document: str) -> str:
    return " ".join((ROOT / document).read_text().split())


def value_of(claim: dict[str, Any]) -> float:
    runs = runs_of(claim["folder"], claim.get("spans", False))
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


@pytest.mark.parametrize("folder", sorted({claim["folder"] for claim in CLAIMS}))
def test_claims_stand_on_their_rows(folder: str) -> None:
    wrong = {claim["text"]: faults_of(claim) for claim in CLAIMS if claim["folder"] == folder}
    assert {text: faults for text, faults in wrong.items() if faults} == {}


def faults_of(claim: dict[str, Any]) -> list[str]:
    """What is wrong with it, if anything."""
    text, said, value = claim["text"], claim["said"], value_of(claim)
    found = []
    if " ".join(text.split()) not in words_of(claim["document"]):
        found.append(f"{claim['document']} does not say so")
    if value != pytest.approx(claim["value"], rel=claim.get("tolerance", 0.02)):
        found.append(f"the rows have {value}, not {claim['value']}")
    if said not in text:
        found.append(f"the text has no {said!r}")
    elif said[0].isdigit() and not is_written_as(said, claim["value"] / claim.get("of", 1)):
        found.append(f"{said} is not how {claim['value']} is written")  # others: a seventh
    return found


@pytest.mark.parametrize(
    ("key", "wrong", "fault"),
    [
        ("text", "no such sentence", "does not say so"),
        ("value", 1e9, "the rows have"),
        ("said", "12345", "the text has no"),
    ],
)
def test_a_claim_that_does_not_stand(key: str, wrong: object, fault: str) -> None:
    assert faults_of(CLAIMS[0]) == []
    assert any(fault in said for said in faults_of(CLAIMS[0] | {key: wrong}))


@pytest.mark.parametrize(
    ("said", "value", "is_so"),
    [
        ("1449", 1.449, True),
        ("1.9", 1.94, True),
        ("1.9", 1.96, False),
        ("86 %", 1.1641, True),  # of the limit's speed
        ("18 %", 0.82, True),  # less
        ("39 %", 1.39, True),  # more
        ("39 %", 1.45, False),
    ],
)
def test_a_number_is_written_as_people_write_it(said: str, value: float, is_so: bool) -> None:
    assert is_written_as(said, value) == is_so


def is_written_as(said: str, value: float) -> bool:
    """Whether a number of the text is this value, rounded to as many digits as it has."""
    number, percent = re.fullmatch(r"([\d.]+)( %)?", said).groups()  # type: ignore[union-attr]
    spelt = [value * scale for scale in (1, 1e3, 1e6, 1e-9)]
    if percent:
        spelt = [100 * share for share in (value, 1 / value, 1 - value, value - 1)]
    last_digit = 10.0 ** -len(number.partition(".")[2])
    return any(abs(each - float(number)) <= 0.51 * last_digit for each in spelt)


def test_reference_rows_are_of_commits_that_are_known() -> None:
    """Every folder of results has rows, and each of them its commit."""
    folders = [path.parent for path in (ROOT / "results").glob("*/runs.parquet")]
    assert len(folders) >= 9
    for folder in folders:
        assert read_runs(folder)["commit"].notna().all(), folder
