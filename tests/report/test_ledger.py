"""Verdicts from rows: quantities, their intervals, rules, and the committed ledger as a whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.helpers.command_line import ROOT
from tpi_bench.report.collection import collected
from tpi_bench.report.ledger.entries import VERDICTS, Entry, read_entries
from tpi_bench.report.ledger.text import ledger_text
from tpi_bench.report.ledger.verdicts import Judged, judged
from tpi_bench.report.results import load

FAST = [1.0, 1.1, 1.05, 0.98, 1.02]
SLOW = [2.0, 2.1, 2.2, 1.9, 2.05]


def rows(system: str, times: list[float], **more: Any) -> pd.DataFrame:
    cells = {"system": system, "cost": "real", "status": "ok", "devices": 1} | more
    name = "-".join(map(str, cells.values()))
    return pd.DataFrame(
        [{"config_hash": name, "repeat": n, "time": t, **cells} for n, t in enumerate(times)]
    )


TABLES = {
    "measured": pd.concat([rows("a", FAST), rows("b", SLOW), rows("once", [3.0])]),
    "modelled": pd.concat(
        [
            rows(system, [time], cost="modelled", devices=devices)
            for devices, times in {2: (1.0, 2.0), 4: (2.0, 1.0), 8: (3.0, 6.0)}.items()
            for system, time in zip("ab", times, strict=True)
        ]
    ),
}
A_OVER_B = {"where": "system == 'a'", "over": {"where": "system == 'b'"}, "column": "time"}


def written(**changes: Any) -> dict[str, Any]:
    return {
        "question": 1,
        "claim": "A is faster than B.",
        "by": "a test",
        "setting": "none",
        "quantities": {"ratio": {"rows": "measured", **A_OVER_B}},
        "measured": "{ratio} of the time",
        "rules": [
            {"condition": "ratio_high < 1", "verdict": "holds", "why": "{ratio:%} of B's"},
            {"condition": "ratio_low > 1", "verdict": "does not hold", "why": "slower"},
        ],
    } | changes


def read(tmp_path: Path, *entries: dict[str, Any]) -> list[Entry]:
    import yaml

    path = tmp_path / "ledger.yaml"
    path.write_text(yaml.safe_dump(list(entries), sort_keys=False))
    return read_entries(path)


def judge(tmp_path: Path, **changes: Any) -> Judged:
    (found,) = judged(read(tmp_path, written(**changes)), TABLES)
    return found


def test_faster_needs_an_interval_that_leaves_out_1(tmp_path: Path) -> None:
    found = judge(tmp_path)
    assert found.verdict == "holds"
    value = found.values["ratio"]
    assert value.low <= value.middle <= value.high < 1
    ends = f"{value.middle:#.3g} [{value.low:#.3g}, {value.high:#.3g}]"
    assert found.measured == f"{ends} of the time"
    assert found.why.endswith(" % of B's")


def test_what_was_measured_once_shows_nothing(tmp_path: Path) -> None:
    once = {"ratio": {"rows": "measured", **A_OVER_B, "where": "system == 'once'"}}
    found = judge(tmp_path, quantities=once)
    assert found.verdict == "not shown"
    assert found.why == "measured once, so without an interval: ratio"
    assert math.isnan(found.values["ratio"].low)


def test_what_is_modelled_is_exact(tmp_path: Path) -> None:
    own = {"rows": "modelled", **A_OVER_B}
    two = {
        "where": "system == 'a' and devices == 2",
        "over": {"where": "system == 'b' and devices == 2"},
    }
    found = judge(tmp_path, quantities={"ratio": own | two})
    assert (found.verdict, found.measured) == ("holds", "0.500 of the time")


@pytest.mark.parametrize(
    ("choice", "value", "place"),
    [
        ({"take": "least"}, 0.5, "devices 2"),
        ({"take": "most"}, 2.0, "devices 4"),
        ({"take": "median"}, 0.5, "devices 8"),
        ({"take": "count"}, 3, "of 3"),
        ({"take": "count", "below": 1}, 2, "of 3"),
        ({"take": "count", "above": 1.9, "below": 0.4}, 1, "of 3"),
    ],
)
def test_of_many_settings(tmp_path: Path, choice: dict[str, Any], value: float, place: str) -> None:
    own = {"ratio": {"rows": "modelled", **A_OVER_B, "each": ["devices"], **choice}}
    found = judge(tmp_path, quantities=own).values["ratio"]
    assert (found.middle, found.place) == (value, place)


def test_where_the_most_was_found_is_said_with_its_unit(tmp_path: Path) -> None:
    own: dict[str, Any] = {"rows": "modelled", **A_OVER_B, "each": ["devices"]}
    quantities = {name: {**own, "take": name} for name in ("least", "most")}
    found = judge(tmp_path, quantities=quantities, measured="at most {most:%}", rules=[])
    assert found.places == "0.500 (the least) at devices 2; 200 % (the most) at devices 4"


def test_the_best_of_several(tmp_path: Path) -> None:
    own = {"rows": "modelled", "column": "time", "where": "devices == 4"}
    quantities = {
        "least": {**own, "pick": "min"},
        "most": {**own, "pick": "max"},
        "gap": {"of": "most - least"},
        "theirs": {"given": 7.5, "source": "a book"},
    }
    found = judge(tmp_path, quantities=quantities, measured="{least:s} {gap:ms} {theirs}", rules=[])
    assert found.measured == "1.00 s 1000 ms 7.5"
    assert found.verdict == "not shown"


def test_a_folder_that_is_missing_says_what_to_run(tmp_path: Path) -> None:
    found = judge(tmp_path, quantities={"ratio": {"rows": "fig_later", **A_OVER_B}})
    assert (found.verdict, found.missing) == ("not shown", ["fig_later"])
    assert found.why == "run python -m tpi_bench +experiment=fig_later"
    none = judge(
        tmp_path,
        quantities={"ratio": {"rows": "measured", "where": "system == 'c'", "column": "time"}},
    )
    assert none.verdict == "not shown"
    assert none.why.startswith("no row of measured has system == 'c'; run ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"claims": "x"}, "claim 1: there is no claims; it may have question, claim"),
        (
            {"rules": [{"condition": "1", "verdict": "maybe", "why": ""}]},
            "verdict=maybe is unknown",
        ),
        (
            {"quantities": {"x": {"rows": "measured", "take": "most"}}},
            "x: take=most is not allowed",
        ),
        ({"quantities": {"x": {"rows": "measured", "pick": "any"}}}, "pick=any is not allowed"),
        (
            {"quantities": {"x": {"rows": "measured", "column": "time"}}},
            "3 configurations of measured",
        ),
        ({"quantities": {"x": {"rows": "measured", "column": "tim"}}}, "cannot be asked"),
        ({"measured": "{x}"}, "question 1: there is no quantity x"),
        ({"measured": "{ratio:km}"}, "ratio has no unit 'km'"),
        (
            {"rules": [{"condition": "ratio <", "verdict": "holds", "why": ""}]},
            "cannot be evaluated",
        ),
        ({"quantities": {"x": {"given": "3.3e9", "source": "y"}}}, "given=3.3e9 is no number"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=r"question|claim") as caught:
        judge(tmp_path, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_ledger() -> None:
    with pytest.raises(ValueError, match=r"ledger=nowhere\.yaml: there is no such file"):
        read_entries(Path("nowhere.yaml"))


@pytest.fixture(scope="module")
def committed() -> list[Judged]:
    entries = read_entries()
    asked = {name for entry in entries for name in entry.folders}
    folders = collected([ROOT / "results"])
    tables = {name: load(folders[name]).runs for name in asked & folders.keys()}
    return judged(entries, tables)


def test_the_ledger_has_all_questions(committed: list[Judged]) -> None:
    assert [each.entry.question for each in committed] == list(range(1, 32))


def test_every_question_has_a_verdict_or_says_what_is_missing(committed: list[Judged]) -> None:
    known = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    for each in committed:
        for command in each.commands:
            assert command.partition("+experiment=")[2].split()[0] in known, command
        assert each.verdict in VERDICTS
        is_shown = each.verdict != "not shown"
        assert is_shown == (not each.missing), (each.entry.question, each.why)
        for name in each.missing:
            assert not (ROOT / "results" / name / "runs.parquet").is_file(), each.why
    assert sum(each.verdict != "not shown" for each in committed) >= 26


def test_numbers_of_the_ledger_are_in_no_sentence(committed: list[Judged]) -> None:
    """But for what a claim or a setting says itself."""
    for each in committed:
        for value in each.values.values():
            shown = f"{value:s}".removesuffix(" s")
            assert "." not in shown or shown not in each.entry.measured


def test_on_a_terminal(committed: list[Judged]) -> None:
    text = ledger_text(committed)
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[-1].startswith("31 claims: ")
    assert "\n     HOLDS WHEN: " in text
