"""Sweeps of modelled points: computed ahead, side by side, and seen as one after another."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import psutil
import pytest
from omegaconf import DictConfig, OmegaConf

from tests.helpers.command_line import ROOT, run
from tests.helpers.settings import settings_of
from tpi_bench import load
from tpi_bench.app import point_launcher, tasks
from tpi_bench.measure import side_by_side
from tpi_bench.measure.record import failure_record
from tpi_bench.measure.settings import Settings
from tpi_bench.report.rows import Record

POINTS = (
    *("-m", "task=measure", "testbed=virtual", "model=debug", "workload.prompt_tokens=8"),
    *("workload.num_new_tokens=4", "system=tpi,pipeline", "testbed.num_devices=2,3"),
    *("network.link_latency_ms=0,1", "progress=false"),
)


def test_rows_and_lines_are_as_one_after_another(cache_dir: Path, tmp_path: Path) -> None:
    found, said = {}, {}
    for launcher in ("points", "basic"):
        results = f"output_dir={tmp_path / launcher}"
        done = run(*POINTS, f"hydra/launcher={launcher}", results, cache_dir=cache_dir)
        assert done.returncode == 0, done.stderr
        said[launcher] = re.sub(r"\S+/(points|basic)\b", "DIR", done.stdout + done.stderr)
        found[launcher] = load(tmp_path / launcher)
    assert said["points"] == said["basic"]
    assert "[8/8] system=pipeline testbed.num_devices=3 network.link_latency_ms=1" in said["points"]
    for name in ("runs", "tokens", "devices"):
        quick, slow = (getattr(found[launcher], name) for launcher in ("points", "basic"))
        others = ["started", "wall_s", "pid", "overrides"]
        pd.testing.assert_frame_equal(
            quick.drop(columns=others, errors="ignore"), slow.drop(columns=others, errors="ignore")
        )
    assert found["basic"].devices.pid.nunique() == 1
    assert 1 <= found["points"].devices.pid.nunique() <= len(os.sched_getaffinity(0))


def test_a_point_that_has_ended_takes_no_memory(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration would be the most that a long sweep holds."""
    kept: list[object] = []
    launch = point_launcher.PointLauncher.launch

    def launch_and_look(*given: Any, **named: Any) -> Any:
        found = launch(*given, **named)
        kept.extend((each.cfg, each.hydra_cfg, each.return_value) for each in found)
        return found

    monkeypatch.setattr(point_launcher.PointLauncher, "launch", launch_and_look)
    done = run(*POINTS, "system=tpi", f"output_dir={tmp_path / 'x'}", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    assert kept == [(None, None, None)] * 4


def test_a_worker_that_dies_costs_its_point_and_a_resumed_sweep_that_alone(
    cache_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    harm = ("system._target_=tests.helpers.saboteur.Saboteur", "+system.rank=1")
    done = run(
        *(*POINTS, "system=tpi", *harm, "+system.harm=none,exit", "testbed.num_devices=2"),
        f"output_dir={folder}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 5
    runs = pd.read_parquet(folder / "runs.parquet")
    assert runs.status.tolist() == ["ok", "error", "ok", "error"]
    failed = runs[runs.status == "error"]
    assert set(failed.error) == {"_attempt ended with exit status 7"}
    kept = {path: path.stat().st_mtime_ns for path in sorted((folder / "points").glob("*.json"))}
    again = run(f"resume={folder}", cache_dir=cache_dir)
    assert again.returncode == 5
    written = {path for path, before in kept.items() if path.stat().st_mtime_ns != before}
    assert {path.stem for path in written} == set(failed.point)


def test_ctrl_c_in_the_middle_is_one_word_and_the_rest_is_resumed(
    cache_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    arguments = [*POINTS, "model=llama2_7b", "system=tpi_window2", "testbed.num_devices=2,4,6,8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tpi_bench", *arguments, f"output_dir={folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("points/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.rstrip().endswith(f"stopped; go on with: python -m tpi_bench resume={folder}")
    assert "Traceback" not in errors
    _gone, alive = psutil.wait_procs(started, timeout=5)
    assert not alive
    kept = len(list(folder.glob("points/*.json")))
    assert 0 < kept < 8
    again = run(f"resume={folder}", cache_dir=cache_dir)
    assert again.returncode == 0, again.stderr
    assert re.search(rf"^{kept} points? (is|are) done and (is|are) not run", again.stderr, re.M)
    assert len(pd.read_parquet(folder / "runs.parquet")) == 8


# Whose turn it is, and what is computed before: without workers and Hydra.


class Greedy:
    """Instead of workers: everything that may be computed ahead is, at once."""

    streams: ClassVar[list[list[str]]]
    ended: ClassVar[int]

    def records(self, points: Iterable[Settings]) -> Iterator[Record]:
        found = [failure_record(settings, "none") for settings in points]
        Greedy.streams.append([record.run.point for record in found])
        return iter(found)

    def end(self) -> None:
        Greedy.ended += 1


class Composed:
    """Instead of a composer: a job names a point that is made already."""

    def compose(self, overrides: list[str]) -> DictConfig:
        return OmegaConf.create({"name": overrides[0], "hydra": {"job": {}}})


def turns_of(
    jobs: dict[str, Settings | None], order: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr(Greedy, "streams", [], raising=False)
    monkeypatch.setattr(Greedy, "ended", 0, raising=False)
    monkeypatch.setattr(side_by_side, "SideBySide", Greedy)
    monkeypatch.setattr(point_launcher, "settings_of", lambda config: jobs[config.name])
    return point_launcher.Turns(Composed(), [[name] for name in order], 0, folder)  # type: ignore[arg-type]


@pytest.fixture
def jobs(cache_dir: Path) -> dict[str, Settings | None]:
    tiny = ("task=measure", "model=debug", "workload.prompt_tokens=3", f"cache_dir={cache_dir}")
    modelled = {
        n: settings_of(*tiny, "testbed=virtual", f"repeat={i}") for i, n in enumerate("abc")
    }
    return modelled | {"R": settings_of(*tiny), "x": None}


def test_nothing_is_computed_while_a_point_is_measured(
    jobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = turns_of(jobs, "abRxcR", tmp_path, monkeypatch)
    seen, begun = "", []
    for number, config in enumerate(turns):
        assert config.hydra.job.num == number
        seen += config.name
        settings = jobs[config.name]
        if settings is not None:
            record = turns.record_of(settings)
            assert (record is None) == (config.name == "R")
            assert record is None or record.run.point == settings.point
        begun.append(sum(map(len, Greedy.streams)))
    assert seen == "abRxcR"
    assert begun == [2, 2, 2, 2, 3, 3]
    turns.close()
    assert Greedy.ended == 1


def test_a_point_that_is_there_twice_is_computed_once(
    jobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first has failed, the second is tried on its own, and costs no other's record."""
    turns = turns_of(jobs, "abac", tmp_path, monkeypatch)
    found = [turns.record_of(jobs[config.name]) for config in turns]
    assert Greedy.streams == [[jobs[name].point for name in "abc"]]
    assert [record and record.run.point for record in found] == [
        jobs[name].point if name else None for name in ("a", "b", None, "c")
    ]


def test_what_is_done_is_not_computed_again(
    jobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        point_launcher, "awaits_record", lambda settings, folder: settings is not jobs["b"]
    )
    turns = turns_of(jobs, "abc", tmp_path, monkeypatch)
    for config in turns:
        if config.name != "b":
            assert turns.record_of(jobs[config.name]).run.point == jobs[config.name].point
    assert Greedy.streams == [[jobs[name].point for name in "ac"]]


def test_what_awaits_its_record(cache_dir: Path, tmp_path: Path) -> None:
    measured, told = (
        settings_of(f"task={task}", "testbed=virtual", "model=debug", "workload.prompt_tokens=3")
        for task in ("measure", "generate")
    )
    assert tasks.awaits_record(measured, tmp_path)
    assert not tasks.awaits_record(told, tmp_path)
