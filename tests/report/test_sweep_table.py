"""The table of any sweep: what varies, how it ended, repeats as median and range."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd

from tests.report.test_rows import RUN
from tpi_bench.report.folder import ResultsFolder, read_runs
from tpi_bench.report.rows import Record, RunRow
from tpi_bench.report.sweep_table import overrides_of, sweep_table, varying
from tpi_bench.report.text import point_line


def run_of(number: int, overrides: str | None, **changes: object) -> RunRow:
    given = {"config_hash": str(number), "ttft_s": 0.5, "token_latency_s": 0.1 * number} | changes
    return replace(
        RUN, point=str(number), started=f"{number:02d}", overrides=overrides, label="TPI", **given
    )


def lines_of(tmp_path: Path, *runs: RunRow) -> list[list[str]]:
    folder = ResultsFolder(tmp_path)
    folder.create()
    for run in runs:
        folder.save(Record(run=run))
    folder.write_tables()
    return [line.split() for line in sweep_table(read_runs(tmp_path)).split("\n")]


def test_a_setting_without_a_column_tells_points_apart(tmp_path: Path) -> None:
    typed = "model=debug workload.seed={} 'prompt=a b=c'"
    head, *lines = lines_of(
        tmp_path, run_of(1, typed.format(7)), run_of(2, typed.format(8), status="timeout")
    )
    assert head[:2] == ["workload.seed", "status"]
    assert [line[:2] for line in lines] == [["7", "ok"], ["8", "timeout"]]


def test_repeats_are_one_line(tmp_path: Path) -> None:
    text = "model.dtype={} repeat={}"
    runs = [
        run_of(1, text.format("float32", 0), config_hash="a"),
        run_of(2, text.format("bfloat16", 0), config_hash="b", token_latency_s=math.nan),
        run_of(3, text.format("float32", 1), config_hash="a"),
        run_of(4, text.format("float32", 2), config_hash="a", status="oom", ttft_s=math.nan),
    ]
    head, first, second = lines_of(tmp_path, *runs)
    assert head[:3] == ["model.dtype", "status", "repeats"]
    assert " ".join(first) == "float32 2 ok, 1 oom 3 500 300 (100 to 400) -"
    assert " ".join(second) == "bfloat16 ok 1 500 - -"


def test_what_was_measured_on_a_busy_host_is_marked(tmp_path: Path) -> None:
    """Its line, where one of its repeats was; and what the mark means stands below, once."""
    busy, quiet = {"cores": 2, "busy_cores_start": 1.5}, {"cores": 2, "busy_cores_start": 0.1}
    runs = [
        run_of(1, "x=1 repeat=0", config_hash="a", **quiet),
        run_of(2, "x=2 repeat=0", config_hash="b", **quiet),
        run_of(3, "x=1 repeat=1", config_hash="a", **busy),
        run_of(4, "x=3 repeat=0", config_hash="c", **busy | {"status": "oom"}),
    ]
    _, *lines, note = lines_of(tmp_path, *runs)
    assert [line[:2] for line in lines] == [["1", "ok*"], ["2", "ok"], ["3", "oom"]]
    assert " ".join(note).startswith("* measured on a busy host")
    assert "*" not in sweep_table(read_runs(tmp_path).assign(busy_cores_start=math.nan))


def test_what_one_point_lacks_is_seen(tmp_path: Path) -> None:
    """Grids of an experiment name settings that others leave as they are."""
    _, *lines = lines_of(tmp_path, run_of(1, "system.window=2 x=1"), run_of(2, "x=1"))
    assert [line[0] for line in lines] == ["2", "-"]


def test_fewer_devices_than_were_asked_for_are_seen(tmp_path: Path) -> None:
    """A library is one process, whatever was typed."""
    runs = [run_of(1, "system=tpi", num_devices=4), run_of(2, "system=transformers", num_devices=1)]
    head, *lines = lines_of(tmp_path, *runs)
    assert head[:2] == ["system", "devices"]
    assert [line[:2] for line in lines] == [["tpi", "4"], ["transformers", "1"]]


def test_older_rows_are_told_apart_by_what_they_have(tmp_path: Path) -> None:
    runs = [run_of(1, None, dtype="float32"), run_of(2, None, dtype="bfloat16")]
    head, *lines = lines_of(tmp_path, *runs)
    assert head[0] == "dtype"
    assert [line[0] for line in lines] == ["float32", "bfloat16"]


def test_a_table_that_is_older_than_a_column(tmp_path: Path) -> None:
    """Nothing is known there, and the line does without."""
    newer = ["token_latency_p99_s", "token_jitter_s", "num_proposed", "tokens_per_pass"]
    lines_of(tmp_path, run_of(1, "model=debug"), run_of(2, "model=tiny"))
    older = read_runs(tmp_path).drop(columns=[*newer, "joules_per_token", "limit_token_s"])
    head, first, _ = (line.split() for line in sweep_table(older).split("\n"))
    assert head == ["model", "status", "TTFT", "ms", "ms", "a", "token", "limit", "ms"]
    assert first == ["debug", "ok", "500", "100", "-"]


def test_a_sweep_of_nothing_has_a_table_too() -> None:
    assert sweep_table(pd.DataFrame()) == "no point was measured"


def test_verdicts_and_perplexities_where_there_are_any(tmp_path: Path) -> None:
    runs = [
        run_of(1, "a=1", tokens_equal=True, perplexity=12.5),
        run_of(2, "a=2", tokens_equal=False),
        run_of(3, "a=3"),
    ]
    head, *lines = lines_of(tmp_path, *runs)
    assert head[-2:] == ["tokens", "perplexity"]
    assert [line[-2:] for line in lines] == [["equal", "12.5"], ["DIFFER", "-"], ["-", "-"]]


def test_log_lines_say_what_was_swept() -> None:
    runs = [run_of(n, f"model=debug model.dtype={d}") for n, d in enumerate(("float32", "q"), 1)]
    swept = varying(map(overrides_of, runs))
    assert swept == [["model.dtype=float32"], ["model.dtype=q"]]
    line = point_line(runs[0], swept[0])
    assert line == "model.dtype=float32: 100.0 ms a token, TTFT 500.0 ms"
    assert point_line(replace(runs[0], num_devices=1, repeat=3)).startswith("TPI")
