"""`task=compare` and `task=trace`, typed: of results folders, stored ones and one made here."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import ROOT, run, run_here
from tpi_bench.app.main import main

STORED = ROOT / "results" / "fig_latency"


def typed(*arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error."""
    done = run_here(main, list(arguments))
    return done.returncode, done.stdout, done.stderr


def test_a_folder_beside_itself() -> None:
    status, shown, _ = typed("task=compare", f"a={STORED}", f"b={STORED}", "fail_above=5%")
    assert status == 0
    assert "slower" not in shown.replace("slower by more", "")
    assert "faster" not in shown
    assert re.search(r"\n0 of \d+ slower by more than 5%, or failed\n$", shown)


def test_points_of_one_repeat_are_counted_beside_those_that_are_judged(tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.mkdir()
    runs = pd.read_parquet(Path(STORED) / "runs.parquet")
    slow = (runs.clock == "wall") & (runs.link_latency_ms == 5)
    runs[~slow | (runs.repeat == 0)].to_parquet(once / "runs.parquet")
    num_once = runs[slow].config_hash.nunique()
    status, shown, _ = typed("task=compare", f"a={once}", f"b={once}", "fail_above=5%")
    assert status == 0
    assert shown.endswith(f", or failed; {num_once} cannot be judged (one repeat, or no times)\n")


def test_as_json(tmp_path: Path) -> None:
    status, shown, _ = typed("task=compare", f"a={STORED}", f"b={STORED}", "report=json")
    found = json.loads(shown)
    assert (status, found["status"], found["worse"]) == (0, "ok", None)
    assert found["environment"] == {}
    ratios = [each["token_latency_s"]["ratio"] for each in found["points"]]
    assert {ratio for ratio in ratios if ratio is not None} == {1.0}


def test_a_check_that_can_judge_nothing_is_not_passed(tmp_path: Path) -> None:
    """One repeat is what a sweep has by itself; in modelled time it is enough."""
    once = tmp_path / "once"
    once.mkdir()
    runs = pd.read_parquet(Path(STORED) / "runs.parquet")
    for clock, expected in (("wall", (1, "undecided")), ("virtual", (0, "ok"))):
        first = runs[(runs.clock == clock) & (runs.repeat == 0)]
        first.to_parquet(once / "runs.parquet")
        compare = ("task=compare", f"a={once}", f"b={once}", "fail_above=5%", "report=json")
        status, shown, error = typed(*compare)
        found = json.loads(shown)
        assert (status, found["exit_reason"]) == expected
        assert error == (f"error: {found['error']}\n" if status else "")
        assert typed(*compare[:3])[0] == 0  # nothing is checked


def test_what_is_missing_in_b_is_no_pass(tmp_path: Path) -> None:
    """The other way round it is something new."""
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    runs = pd.read_parquet(Path(STORED) / "runs.parquet")
    runs[runs.config_hash != runs.config_hash.iloc[0]].to_parquet(fewer / "runs.parquet")
    for name in ("tokens", "devices"):
        pd.read_parquet(Path(STORED) / f"{name}.parquet").to_parquet(fewer / f"{name}.parquet")
    compare = ("task=compare", "fail_above=5%")
    status, shown, error = typed(*compare, f"a={STORED}", f"b={fewer}")
    assert status == 1
    assert re.match(r"error: 1 of a's \d+ points are missing in b: ", error)
    assert "or failed; 1 that a has are missing in b\n" in shown
    status, shown, _ = typed(*compare, f"a={STORED}", f"b={fewer}", "report=json")
    found = json.loads(shown)
    assert (status, found["exit_reason"], found["fail_above"]) == (1, "missing", 0.05)
    assert error == f"error: {found['error']}\n"
    assert typed(*compare, f"a={fewer}", f"b={STORED}")[0] == 0


def test_what_is_slower_in_b_is_said_in_a_line(tmp_path: Path) -> None:
    slower = tmp_path / "slower"
    shutil.copytree(STORED, slower)
    runs = pd.read_parquet(slower / "runs.parquet")
    runs.assign(token_latency_s=2 * runs.token_latency_s).to_parquet(slower / "runs.parquet")
    compare = ("task=compare", "fail_above=5%", f"a={STORED}", f"b={slower}")
    status, shown, error = typed(*compare, "report=json")
    found = json.loads(shown)
    assert (status, found["exit_reason"]) == (1, "slower")
    assert error == f"error: {found['error']}\n"
    of = f"{len(found['worse'])} of {len(found['points'])} points"
    said = f"{of} are slower by more than 5%, or failed: {found['worse'][0]}: slower"
    assert found["error"] == said
    assert typed(*compare)[2] == error


def test_how_it_is_used() -> None:
    status, shown, _ = typed("task=compare", "--help")
    assert (status, shown.split()[:2]) == (0, ["usage:", "python"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([f"a={STORED}", f"b={STORED}", "fail_above=5"], "fail_above=5 would be 500%; write "),
        (["a=x"], "b is missing. Usage: python -m tpi_bench task=compare a=DIR b=DIR"),
        ([], "a and b is missing"),
        (["a=nowhere", f"b={STORED}"], "a=nowhere: there is no folder nowhere; give"),
        ([f"a={STORED}", "b=tests"], "b=tests: tests holds no results; give the folder of a"),
        ([f"a={STORED}", f"b={STORED}", "fail_abov=5%"], "did you mean fail_above?"),
        ([f"a={STORED}", f"b={STORED}", "fail_above=much"], "it is a share, as 5% or 0.05"),
        ([f"a={STORED}", f"b={STORED}", "report=xml"], "it may be text or json"),
    ],
)
def test_what_cannot_be_compared(arguments: list[str], said: str) -> None:
    status, shown, told = typed("task=compare", *arguments)
    assert (status, shown) == (2, "")
    assert told.startswith("error: ")
    assert said in told
    assert told.count("\n") == 1


def test_spans_for_perfetto(cache_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "traced"
    measured = run(
        "task=measure",
        "testbed=virtual",
        "testbed.trace=true",
        "testbed.num_devices=2",
        "model=debug",
        "workload.prompt_tokens=3",
        "workload.num_new_tokens=2",
        f"output_dir={folder}",
        cache_dir=cache_dir,
    )
    assert measured.returncode == 0, measured.stderr
    status, shown, told = typed("task=trace", str(folder))
    assert status == 0, told
    assert shown.startswith(f"{folder / 'trace.json'}: ")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X"} >= {"embed", "attn"}
    assert {event["pid"] for event in events} == {0, 1}


def test_no_spans() -> None:
    status, _, told = typed("task=trace", str(STORED))
    assert status == 2
    assert told == (f"error: {STORED}: no spans were kept; measure again with testbed.trace=true\n")
    assert not (STORED / "trace.json").exists()
