"""Sweeps from the command line: tables, figure, failed points, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import run, sweep
from tpi_bench.app import experiment

SWEEP = [
    "-m",
    "task=measure",
    "name=tiny",
    "model=hf",
    "workload.prompt_ids=[1,2,3]",
    "workload.num_new_tokens=4",
    "network.link_latency_ms=0,1",
    "figure=experiments.fig_latency",
    "system=tpi,transformers",
]


def test_a_sweep_leaves_tables_and_a_figure_and_is_resumed(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    path = f"model.path={checkpoints['gqa']}"
    done = run(*SWEEP, path, f"results_dir={tmp_path}", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "tiny").iterdir()
    assert {
        "runs.csv",
        "runs.parquet",
        "tokens.csv",
        "devices.csv",
        "fig_latency.png",
        "fig_latency.pdf",
    } <= {p.name for p in folder.iterdir()}
    runs = pd.read_parquet(folder / "runs.parquet")
    # one device has no link: its two points are one
    assert sorted(runs.system) == ["tpi", "tpi", "transformers"]
    assert (runs.status == "ok").all()
    assert runs.commit.str.len().min() > 6
    assert (runs.clock == "wall").all()
    tokens = pd.read_parquet(folder / "tokens.parquet")
    assert len(tokens) == 12
    assert len(pd.read_parquet(folder / "devices.parquet")) == 5
    assert "TPI star" in done.stdout

    victim = next((folder / "points").glob("*.json"))
    kept = {p: p.stat().st_mtime_ns for p in (folder / "points").iterdir() if p != victim}
    victim.unlink()
    again = run(f"resume={folder}", cache_dir=cache_dir)
    assert again.returncode == 0, again.stderr
    assert victim.exists()
    assert kept == {p: p.stat().st_mtime_ns for p in kept}


def test_a_failed_point_is_a_row_and_the_sweep_goes_on(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    done = run(
        "-m",
        "task=measure",
        "name=tiny",
        "model=hf",
        f"model.path={checkpoints['gqa']}",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=2",
        "testbed.num_devices=10,1",
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 5
    (folder,) = (tmp_path / "tiny").iterdir()
    runs = pd.read_csv(folder / "runs.csv")
    assert sorted(runs.status) == ["error", "ok"]
    assert "attention heads" in runs[runs.status == "error"].error.iloc[0]
    assert "attention heads" in done.stderr


def test_a_seed_fixes_sampled_tokens(cache_dir: Path, tmp_path: Path) -> None:
    folder = sweep(
        "model=debug",
        "workload.prompt_ids=[1,2,3]",
        "workload.temperature=1.5",
        "workload.seed=1,2",
        "workload.num_new_tokens=12",
        "repeat=0,1",
        cache_dir=cache_dir,
        tmp_path=tmp_path,
    )
    tokens = pd.read_parquet(folder / "tokens.parquet").groupby("point", sort=False).token_id
    first, other, again, other_again = (tuple(ids) for _, ids in tokens)  # repeats in turns
    assert first == again
    assert other == other_again
    assert first != other


def test_jobs_count_overrides_once() -> None:
    from omegaconf import OmegaConf

    params = {"repeat": "0,1,2", "network.link_latency_ms": "0,0.5,1", "system": "tpi,pipeline"}
    overrides = {"task": ["+experiment=x", "repeat=0", "system=tpi,a,b,c"]}
    config = OmegaConf.create({"hydra": {"sweeper": {"params": params}, "overrides": overrides}})
    jobs = experiment.all_jobs(config)
    assert jobs is not None
    assert len(jobs) == 1 * 3 * 4


def test_different_configurations_are_different_lines(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    done = run(
        *SWEEP,
        f"model.path={checkpoints['gqa']}",
        "system=tpi,tpi_direct,pipeline",
        "testbed.num_devices=2,3",
        "network.link_latency_ms=3",
        f"results_dir={tmp_path}",
        "testbed.trace=true",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    assert "TPI star, 2 devices" in done.stdout
    assert "TPI star, 3 devices" in done.stdout
    (folder,) = (tmp_path / "tiny").iterdir()
    runs = pd.read_parquet(folder / "runs.parquet")
    # emulated links are never early, so nothing beats its limit
    assert (runs.token_latency_s >= runs.limit_token_s).all()
    spans = pd.read_parquet(folder / "spans.parquet")
    assert {"compute", "sync", "read"} <= set(spans.kind)


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ("experiments.fig_latenci", "did you mean figure=experiments.fig_latency?"),
        ("experiments.nope", "there are experiments.bench_"),
        ("fig_latency", "did you mean figure=experiments.fig_latency?"),
        ("mine.drawn", "there are experiments.bench_engine, experiments.bench_profile, "),
    ],
)
def test_a_figure_that_is_not_there(figure: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^there is no figure={figure}; ") as caught:
        experiment.drawing_of(figure)
    assert said in str(caught.value)


def test_what_cannot_draw_is_refused_before_the_sweep(cache_dir: Path, tmp_path: Path) -> None:
    figure = "experiments.propositions"
    results = f"results_dir={tmp_path}"
    done = run(*SWEEP[:3], "model=debug", f"figure={figure}", results, cache_dir=cache_dir)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: figure={figure} cannot draw the results: ")
    assert "has no attribute 'DRAWING'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("system=tpi_auto", "device.memory_mb=0.05,10"), "is too little for the largest block"),
        (("system=edgeshard", "device.memory_mb=0.5,10"), "of layers do not fit in the devices'"),
    ],
)
def test_what_cannot_fit_is_an_answer(
    arguments: tuple[str, ...], reason: str, cache_dir: Path, tmp_path: Path
) -> None:
    """Known before anything runs, it is a row as if it had been found out."""
    folder = sweep(
        "testbed=virtual",
        "model=debug",
        "testbed.num_devices=2",
        "workload.prompt_tokens=3",
        *arguments,
        cache_dir=cache_dir,
        tmp_path=tmp_path,
    )
    runs = pd.read_parquet(folder / "runs.parquet")
    assert runs.status.tolist() == ["oom", "ok"]
    assert reason in runs.error[0]


def test_a_sweep_of_answers_says_which_is_which(cache_dir: Path, tmp_path: Path) -> None:
    """Without task=measure there is no table, so every point is announced, and how to have one."""
    done = run(
        *(
            "-m",
            "testbed=virtual",
            "model=debug",
            "workload.prompt_tokens=8",
            "system=tpi,pipeline",
        ),
        *("model.weights=q8,float16", "network=wifi_paper", f"results_dir={tmp_path}"),
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert said[0] == "note: task=generate leaves no rows and no table; task=measure does"
    assert said[1].startswith("tpi: debug in q8 on ")
    assert said[1].endswith("virtual time (wifi network, 3 ms one way at least)")
    heads = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert (heads[0], heads[3]) == (
        "[1/4] system=tpi model.weights=q8",
        "[4/4] system=pipeline model.weights=float16",
    )
    assert done.stdout.count("token latency") == 4


ANSWERS = ["-m", "model=debug", "testbed=virtual", "workload.prompt_tokens=3"]


def test_answers_of_a_sweep_say_what_they_are_of(cache_dir: Path) -> None:
    swept = [*ANSWERS, "workload.num_new_tokens=2", "testbed.num_devices=1,2"]
    done = run(*swept, cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    heads = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert heads == ["[1/2] testbed.num_devices=1", "[2/2] testbed.num_devices=2"]


def test_answers_of_a_sweep_are_an_object_a_line(cache_dir: Path) -> None:
    swept = [*ANSWERS, "workload.num_new_tokens=2,3", "report=json"]
    done = run(*swept, cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(report["token_ids"]) for report in reports] == [2, 3]
    for report in reports:
        own = f"workload.num_new_tokens={len(report['token_ids'])}"
        assert own in report["overrides"]
        assert "model=debug" in report["overrides"]


@pytest.mark.parametrize(("num_devices", "status"), [("1,2", 0), ("2,64", 5), ("64,65", 5)])
def test_a_measured_sweep_is_one_object(
    num_devices: str, status: int, cache_dir: Path, tmp_path: Path
) -> None:
    """Its table, which a person may still want to see, is no part of standard output then."""
    swept = [*ANSWERS, "task=measure", f"testbed.num_devices={num_devices}", "report=json"]
    done = run(*swept, f"results_dir={tmp_path}", cache_dir=cache_dir)
    assert done.returncode == status
    report = json.loads(done.stdout)
    assert (report["points"], report["status"] == "ok") == (2, status == 0)
    assert "testbed.num_devices status" in done.stderr
