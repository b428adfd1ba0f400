"""Two run tables beside each other: which points are the same, and what their ratios show."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from tpi_bench.report.comparison import compared_runs, comparison_report, comparison_text

USUAL: dict[str, Any] = {
    "status": "ok",
    "cost": "real",
    "label": "TPI star",
    "variant": "",
    "ttft_s": 1.0,
    "peak_anon_bytes": 1e9,
    "overrides": "",
    "commit": "aaa",
    "host": "h",
    "cpu": "c",
    "cores": 2,
    "platform": "p",
    "python": "3.11",
    "torch_version": "2",
    "transformers_version": "5",
    "numpy_version": "2",
}


def runs(points: dict[str, list[float]], **cells: Any) -> pd.DataFrame:
    """A row a repeat: its token latency, by configuration."""
    rows = [
        USUAL
        | {"config_hash": name, "repeat": repeat, "token_latency_s": latency}
        | {"overrides": f"system={name} repeat={repeat}"}
        | cells
        for name, latencies in points.items()
        for repeat, latency in enumerate(latencies)
    ]
    return pd.DataFrame(rows)


A = runs({"tpi": [1.0, 1.2, 1.1], "pipeline": [1.0, 1.1, 0.9], "galaxy": [2.0]})


def verdicts(b: pd.DataFrame) -> dict[str, str]:
    return {line.name: line.verdict for line in compared_runs(A, b).lines}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("device=a%284%2C8%2C20%2C0.5%29", "'device=a(4,8,20,0.5)'"),
        ("'device=[home%2Fa.json,pi_5]'", "'device=[home/a.json,pi_5]'"),
        ("'prompt=%text:Is it %27on%27%3F'", """ 'prompt=Is it '"'"'on'"'"'?' """),
        (r"'prompt=%text\:What\ is\ it%3F'", "'prompt=What is it?'"),
        ("x=1", "x=1"),
    ],
)
def test_what_was_written_in_another_way_is_the_same(before: str, now: str) -> None:
    """Of versions whose configurations differ: by what was typed, as a person types it."""
    a = runs({"old": [1.0]}, overrides=f"system=tpi {before}")
    b = runs({"new": [1.0]}, overrides=f"{now} system=tpi")
    other = runs({"other": [1.0]}, overrides="'device=a(4,8,20,0.6)' 'prompt=What was it?' x=2")
    found = compared_runs(a, pd.concat([b, other], ignore_index=True))
    assert [line.time.num for line in found.lines] == [1]
    assert (len(found.only_a), len(found.only_b)) == (0, 1)


def test_a_difference_needs_an_interval_without_one() -> None:
    b = runs({"tpi": [1.1, 1.35, 1.2], "pipeline": [1.05, 1.0, 0.95], "galaxy": [3.0]})
    assert verdicts(b) == {
        "system=tpi": "slower",
        "system=pipeline": "no difference shown",
        "system=galaxy": "one repeat: no difference can be shown",
    }


def test_what_is_computed_needs_no_repeats() -> None:
    a, b = (runs({"tpi": [x]}, cost="modelled") for x in (1.0, 1.01))
    (line,) = compared_runs(a, b).lines
    assert line.verdict == "slower"
    assert not line.is_worse(0.05)
    assert compared_runs(a, a).lines[0].verdict == "the same"


def test_slower_by_more_than_asked() -> None:
    b = runs({"tpi": [1.2, 1.5, 1.4], "pipeline": [1.5, 1.0, 1.3], "galaxy": [9.0]})
    found = compared_runs(A, b)
    assert [line.name for line in found.worse(0.05)] == ["system=tpi"]
    assert found.worse(0.5) == []
    assert comparison_report(found, 0.05)["worse"] == ["system=tpi"]


def test_a_point_that_fails_now_is_worse() -> None:
    b = runs({"tpi": [1.0]}, status="oom")
    (line,) = compared_runs(A, b).lines
    assert line.verdict == "oom, was ok"
    assert line.is_worse(10)


def test_another_version_has_other_hashes() -> None:
    """Then what was typed says which points are the same."""
    b = runs({"tpi": [1.0, 1.2, 1.1]}, config_hash="of a newer version", commit="bbb")
    found = compared_runs(A, b)
    assert [line.name for line in found.lines] == ["system=tpi"]
    assert found.only_a == ["system=pipeline", "system=galaxy"]
    assert found.environment == {"commit": ("aaa", "bbb")}
    text = comparison_text(found, None)
    assert "only in a: 2 (system=pipeline; system=galaxy)" in text
    assert text.endswith("commit: a aaa; b bbb")


def test_points_are_the_same_under_another_name() -> None:
    a, b = (
        runs({"tpi": [1.0, 1.2]}, config_hash=name, overrides=f"name={name} system=tpi")
        for name in ("before", "after")
    )
    assert [line.name for line in compared_runs(a, b).lines] == ["TPI star"]


def test_nothing_in_common() -> None:
    with pytest.raises(ValueError, match="no point in common"):
        compared_runs(A, runs({"mmap": [1.0]}))
