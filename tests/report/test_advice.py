"""What is told of advice: a function of rows and of `advice.json`, as text and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import ROOT
from tpi_bench.report.advice import (
    PERPLEXITY,
    Advice,
    Change,
    Kind,
    Line,
    Rows,
    advice_report,
)
from tpi_bench.report.advice_text import advice_text, seconds_text
from tpi_bench.report.rows import DeviceRow, Record, RunRow


def record(point: str, token_s: float = 0.5, **changes: object) -> Record:
    run = replace(
        RunRow.of(),
        point=point,
        status="ok",
        system="tpi",
        label="TPI star",
        variant="wire q8",
        weights="q4",
        device="pi, pi",
        token_latency_s=token_s,
        ttft_s=2 * token_s,
        prompt_tokens=32,
        num_tokens=16,
    )
    run = replace(run, **changes)  # type: ignore[arg-type]
    devices = [
        replace(DeviceRow.unmeasured(), rank=rank, ledger_bytes=(rank + 1) * 10**9, kept_bytes=1.0)
        for rank in range(2)
    ]
    return Record(run=run, devices=devices)


RECORDS = [
    record("best"),
    record("best, long", prompt_tokens=512, ttft_s=40.0),
    record("slow", 1.5),
    record("more memory", 0.25),
]
ADVICE = Advice(
    model="llama",
    network="wifi network, 1 ms a hop",
    devices=["A pi: 4 cores", "B pi: 4 cores"],
    weights_gb={"q4": 4.5},
    memory_gb=17.2,
    best=[
        Line(
            point="best",
            long_point="best, long",
            team="A B",
            limited_by="links",
            bound_s=0.4,
            weights_s=0.1,
            links_s=0.3,
            disk_s=0.0,
        )
    ],
    kinds=[
        Kind(of="system", name="tpi star", point="best", bound_s=0.5, why="the best of all"),
        Kind(of="system", name="pipeline", point="slow", bound_s=1.5, why="memory"),
        Kind(of="system", name="ring", point=None, bound_s=7.0, why="links, as its bound says"),
        Kind(of="system", name="galaxy", point=None, bound_s=None, why="does not fit"),
        Kind(of="weights", name="q4", point="best", bound_s=0.5, why="the best of all"),
    ],
    changes=[
        Change(words="a fast disk", point=None),
        Change(words="cables", point="best", num_left=7),
        Change(words="memory", point="more memory"),
        Change(words="another pi", point=None, num_left=4, is_run=False),
    ],
    num_ways=90,
    num_run=30,
    num_lacking=10,
    skipped={"links": 30, "disk": 15},
    num_left=5,
    left_bound_s=0.7,
    took_s=12.0,
    commands={"Again": "python -m tpi_bench task=measure"},
    notes=["virtual time"],
)


def test_everything_that_was_found_is_told() -> None:
    text = advice_text(ADVICE, Rows.of(RECORDS))
    (line,) = [line for line in text.split("\n") if line.startswith("1 ")]
    assert line.split() == [
        *("1", "TPI", "star", "wire", "q8", "A", "B", "q4", "500", "ms", "2", "1", "s", "40", "s"),
        *("1.0+2.0", "links", "29.86"),
    ]
    assert "TTFT 32" in text
    assert "TTFT 512" in text
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert "pipeline 1.5 s memory" in lines
    assert "ring > 7 s links, as its bound says" in lines
    assert "galaxy - does not fit" in lines
    assert "By precision" not in text  # of one alone there is nothing to compare
    assert lines.index("memory 250 ms 2.00 times as fast (TPI star wire q8, pi, pi)") < (
        lines.index("a fast disk - no gain")
    )
    assert "cables - no gain in the likeliest ways; 7 were not run" in lines
    assert "another pi - not looked at for lack of time (4 ways)" in lines
    assert "90 ways to run it: 30 were run in virtual time, 10 do not fit for certain" in text
    assert "(30 by links, 15 by disk). It took 12 s. 5 ways were left for lack of time" in text
    assert "at least 700 ms a token" in text
    assert text.endswith("Again:\n  python -m tpi_bench task=measure\n\nnote: virtual time")


def test_one_is_not_told_as_several() -> None:
    changes = [
        Change(words="cables", point=None, num_left=1),
        Change(words="another pi", point=None, num_left=1, is_run=False),
    ]
    one = replace(ADVICE, changes=changes, num_ways=3, num_run=1, num_lacking=1, num_left=1)
    text = advice_text(replace(one, left_bound_s=0.3), Rows.of(RECORDS))
    assert "no gain in the likeliest ways; 1 was not run" in text
    assert "not looked at for lack of time (1 way)" in text
    assert "3 ways to run it: 1 was run in virtual time, 1 does not fit for certain" in text
    assert "1 way was left for lack of time; it takes at least 300 ms" in text
    assert "so that it may be better" in text


def test_it_is_the_same_from_the_disk(tmp_path: Path) -> None:
    ADVICE.save(tmp_path)
    assert Advice.load(tmp_path) == ADVICE
    with pytest.raises(ValueError, match=r"holds no advice\.json; give a results folder"):
        Advice.load(tmp_path / "other")


def test_the_report_is_json_and_says_the_same() -> None:
    rows = Rows.of(RECORDS)
    report = json.loads(json.dumps(advice_report(ADVICE, rows, Path("x")), allow_nan=False))
    assert report["results"] == "x"
    (best,) = report["best"]
    assert (best["token_latency_s"], best["ttft_s"], best["long_ttft_s"]) == (0.5, 1.0, 40.0)
    assert best["memory_bytes"] == [10**9, 2 * 10**9]
    assert best["perplexity_of_demo_model"] == 29.86
    assert [each["token_latency_s"] for each in report["others"]] == [0.5, 1.5, None, None, 0.5]
    assert [each["token_latency_s"] for each in report["changes"]] == [None, 0.5, 0.25, None]
    assert report["search"]["skipped_by_bound"] == {"links": 30, "disk": 15}


def test_where_nothing_fits_it_says_what_would_help() -> None:
    nothing = replace(ADVICE, best=[], kinds=[ADVICE.kinds[3]], num_left=0)
    text = advice_text(nothing, Rows.of(RECORDS))
    assert "Nothing fits" in text
    hasty = advice_text(replace(nothing, num_left=3), Rows.of(RECORDS))
    assert "Nothing that was run fits" in hasty
    assert "it fits (TPI star wire q8, pi, pi)" in text


def test_it_says_what_else_is_worth_knowing() -> None:
    """That the best is not certain, who answers a long prompt soonest, and what is mapped."""
    slow = replace(ADVICE.best[0], point="slow", long_point="slow, long")
    advice = replace(ADVICE, best=[ADVICE.best[0], slow], left_bound_s=0.3)
    mapped = replace(RECORDS[2].devices[0], kept_bytes=math.nan)
    slow_records = [
        replace(RECORDS[2], devices=[mapped, replace(mapped, rank=1, ledger_bytes=0)]),
        record("slow, long", prompt_tokens=512, ttft_s=30.0),
    ]
    text = advice_text(advice, Rows.of([*RECORDS, *slow_records]))
    assert "A prompt of 512 is answered soonest by 2: after 30 s." in text
    assert "one of them may be better: timeout_s=120" in text
    (line,) = [line for line in text.split("\n") if line.startswith("2 ")]
    assert "  mapped  " in line


@pytest.mark.parametrize(("token_s", "told"), [(0.54, True), (0.56, False)])
def test_ways_that_are_not_told_apart_are_not_ranked(token_s: float, told: bool) -> None:
    near = replace(ADVICE.best[0], point="near", long_point=None)
    advice = replace(ADVICE, best=[ADVICE.best[0], near])
    text = advice_text(advice, Rows.of([*RECORDS, record("near", token_s)]))
    assert ("The first 2 are within a tenth of each other" in text) == told


def test_a_longer_prompt_may_have_no_room() -> None:
    failed = replace(RECORDS[1], run=replace(RECORDS[1].run, status="oom", ttft_s=math.nan))
    text = advice_text(ADVICE, Rows.of([RECORDS[0], failed, *RECORDS[2:]]))
    assert "no room" in text


def test_times_are_read_at_a_glance() -> None:
    assert [seconds_text(s) for s in (0.0123, 0.9, 1.29, 211.4, 4321.0, math.nan)] == [
        *("12.3 ms", "900 ms", "1.29 s", "211 s", "4321 s", "-")
    ]


def test_the_perplexities_are_those_that_were_measured() -> None:
    runs = pd.read_parquet(ROOT / "results" / "tab_equivalence_precisions" / "runs.parquet")
    ours = runs[runs.perplexity.notna() & (runs.system == "tpi")]
    found = ours.groupby("weights").perplexity.median().round(2).to_dict()
    assert found.keys() >= PERPLEXITY.keys()
    assert {weights: found[weights] for weights in PERPLEXITY} == PERPLEXITY
