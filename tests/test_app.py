"""The command line as users and scripts meet it: JSON contract, bad input, sweeps, resume."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.models_zoo import oracle
from tpi_bench import app

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cache_dir: Path, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tpi_bench", *arguments, f"cache_dir={cache_dir}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, **kwargs)


def sweep(*arguments: str, cache_dir: Path, tmp_path: Path) -> Path:
    """The results folder of a sweep whose points all have answers."""
    done = run(
        "-m",
        "task=measure",
        "name=sweep",
        *arguments,
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "sweep").iterdir()
    return folder


def report_of(done: subprocess.CompletedProcess) -> dict:
    return json.loads(done.stdout.strip().split("\n")[-1])


def test_help_is_quick_and_names_the_groups() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tpi_bench", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert (
        time.monotonic() - start < 10
    )  # loose here; the imports it must not make are in test_floors
    assert "pipeline, tpi, tpi_direct" in done.stdout
    assert "+experiment=fig_latency" in done.stdout


def test_the_contract_for_scripts(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    folder = checkpoints["gqa"]
    done = run(
        "task=generate",
        "report=json",
        "system=tpi",
        "model=hf",
        f"model.path={folder}",
        "testbed.num_devices=2",
        "system.window=2",
        "system.collective=star",
        "network.link_latency_ms=1",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=16",
        "workload.ignore_eos=true",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    assert report["status"] == "ok"
    assert report["token_ids"] == oracle(folder, (1, 2, 3), 16)[0]
    assert report["ttft_s"] > 6 * 4e-3  # 6 allreduces, each two messages of 2 ms
    assert len(report["token_latencies_s"]) == 15
    assert min(report["token_latencies_s"]) > 6 * 4e-3 * 0.95
    assert [device["rank"] for device in report["devices"]] == [0, 1]
    for device in report["devices"]:
        assert device["weight_bytes_read"] > 0
        assert device["peak_anon_bytes"] > 0
        assert device["peak_file_bytes"] > 0
    assert 0.0038 < report["link_round_trip_s"] < 0.02
    assert "error" not in report


BAD = [
    (["system=nope"], "Could not find 'system/nope'; available options in 'system': "),
    (["system.collective=nope"], "choose one of star, tree, ring, direct"),
    (["system.nope=1"], "system.nope"),
    (["system.window=0"], "system.window=0 must be a whole number of at least 1, or off"),
    (["testbed.num_devices=0"], "testbed.num_devices=0 must be at least 1"),
    (["testbed.num_devices=10"], "more than the model's 9 attention heads"),
    (["testbed.num_devices=two"], "testbed.num_devices=two has the wrong type"),
    (["testbed.proportions=[1,2,3]"], "must hold 2 positive numbers"),
    (["workload.num_new_tokens=600"], "the model's context is 512"),
    (["workload.prompt_ids=[300]"], "outside the model's vocabulary (0 to 299)"),
    (["workload.prompt_ids=null"], "holds no tokenizer"),
    (["model.path=/nowhere"], "/nowhere does not exist"),
    (["model.dtype=int4"], "model.dtype=int4 is not supported"),
    (["network=nope"], "available options in 'network': "),
    (["network.link_latency_ms=-1"], "must be a number of at least 0"),
    (["task=nope"], "task=nope is unknown; choose one of generate, measure"),
    (["resume=/nowhere"], "no overrides.json there"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_nothing_starts(
    checkpoints: dict[str, Path], cache_dir: Path, arguments: list[str], message: str
) -> None:
    given = [
        "report=json",
        "model=hf",
        f"model.path={checkpoints['gqa']}",
        "workload.prompt_ids=[1,2]",
    ]
    names = {argument.partition("=")[0] for argument in arguments}
    done = run(
        *[g for g in given if g.partition("=")[0] not in names], *arguments, cache_dir=cache_dir
    )
    assert done.returncode == 1
    report = report_of(done)
    assert report["status"] == "error"
    assert message in report["error"]
    lines = done.stderr.strip().split("\n")
    assert lines == [f"error: {report['error']}"]


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
    again = subprocess.run(
        [sys.executable, "-m", "tpi_bench", f"resume={folder}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
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
    assert done.returncode == 1
    (folder,) = (tmp_path / "tiny").iterdir()
    runs = pd.read_csv(folder / "runs.csv")
    assert sorted(runs.status) == ["error", "ok"]
    assert "attention heads" in runs[runs.status == "error"].error.iloc[0]
    assert "attention heads" in done.stderr


def has_connections(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # helpers come and go
        return bool(process.net_connections(kind="tcp"))
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing_running(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path, number: int
) -> None:
    command = [
        sys.executable,
        "-m",
        "tpi_bench",
        *SWEEP,
        f"model.path={checkpoints['gqa']}",
        "network.link_latency_ms=5",
        "workload.num_new_tokens=400",
        "system=tpi",
        f"results_dir={tmp_path}",
        f"cache_dir={cache_dir}",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 30
    devices: list[psutil.Process] = []
    while len(devices) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        devices = [c for c in parent.children(recursive=True) if has_connections(c)]
    assert len(devices) == 2
    started = parent.children(recursive=True)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "stopped; go on with: python -m tpi_bench resume=" in errors
    assert "Traceback" not in errors
    _gone, alive = psutil.wait_procs(started, timeout=3)
    assert not alive
    assert not list(tmp_path.rglob("*.tmp*"))


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def imports_torch(process: subprocess.Popen, cache_dir: Path) -> bool:
    paths = [Path(f"/proc/{p.pid}/maps") for p in descendants(process)]
    return any("libtorch" in path.read_text() for path in paths if path.exists())


def has_helper(process: subprocess.Popen, cache_dir: Path) -> bool:
    return any(p.ppid() != process.pid for p in descendants(process))


def has_block_file(process: subprocess.Popen, cache_dir: Path) -> bool:
    return any(cache_dir.rglob("*rank0*"))


@pytest.mark.parametrize("has_come", [imports_torch, has_helper, has_block_file])
def test_ctrl_c_at_any_time_is_one_word(
    tmp_path: Path, has_come: Callable[[subprocess.Popen, Path], bool]
) -> None:
    """A terminal sends it to all processes, some of which are still starting."""
    command = [sys.executable, "-m", "tpi_bench", "model=tinyllama_1.1b", f"cache_dir={tmp_path}"]
    process = subprocess.Popen(
        [*command, "workload.prompt_ids=[1]"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not has_come(process, tmp_path) and time.monotonic() < deadline:
        time.sleep(0.001)
    started = descendants(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "stopped\n")
    _gone, alive = psutil.wait_procs(started, timeout=5)
    assert not alive
    assert not list(tmp_path.rglob("*.tmp*"))


def test_a_background_launcher_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """Scripts start what runs in the background with SIGINT ignored; helpers need it to tidy up."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tpi_bench",
            "model=tinyllama_1.1b",
            "workload.prompt_ids=[1]",
            f"cache_dir={tmp_path}",
        ],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    deadline = time.monotonic() + 30
    while not has_block_file(process, tmp_path) and time.monotonic() < deadline:
        time.sleep(0.001)
    started = descendants(process)
    process.kill()
    process.wait()
    _gone, alive = psutil.wait_procs(started, timeout=3)
    assert not alive
    assert not list(tmp_path.rglob("*.tmp*"))


def test_ctrl_c_during_the_imports_is_one_word() -> None:
    code = """
import runpy, sys

class Stop:
    def find_spec(self, name, path, target=None):
        if name == "tpi_bench.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stop())
runpy.run_module("tpi_bench", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (130, "stopped\n")


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
    first, again, other, other_again = (tuple(ids) for _, ids in tokens)
    assert first == again
    assert other == other_again
    assert first != other


def test_num_points_counts_overrides_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    params = {"repeat": "0,1,2", "network.link_latency_ms": "0,0.5,1", "system": "tpi,pipeline"}
    config = OmegaConf.create({"hydra": {"sweeper": {"params": params}}})
    monkeypatch.setattr(sys, "argv", ["tpi_bench", "+experiment=x", "repeat=0", "system=tpi,a,b,c"])
    assert app.num_points(config) == 1 * 3 * 4


def test_a_reader_that_leaves_is_no_failure_of_a_device(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    command = (
        f"{sys.executable} -m tpi_bench model=hf model.path={checkpoints['gqa']} "
        f"workload.prompt_ids=[1,2,3] workload.num_new_tokens=200 cache_dir={cache_dir} | head -c 1"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert len(done.stdout) == 1
    assert "device_lost" not in done.stderr
    assert "Traceback" not in done.stderr


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


def test_check_says_its_verdict(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    done = run(
        "task=measure",
        "check=true",
        "model=hf",
        f"model.path={checkpoints['tied']}",
        "workload.prompt_ids=[1,2,3]",
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    assert "tokens equal those of the oracle, largest logit difference" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["cache_dir=5"],
        ["name=../x"],
        ["network.timeout_s=inf"],
        ["workload.seed=-1"],
        ["workload.warmup_tokens=9999"],
    ],
)
def test_more_bad_values(
    checkpoints: dict[str, Path], cache_dir: Path, arguments: list[str]
) -> None:
    given = ["model=hf", f"model.path={checkpoints['gqa']}", "workload.prompt_ids=[1,2]"]
    command = [sys.executable, "-m", "tpi_bench", *given, f"cache_dir={cache_dir}", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
