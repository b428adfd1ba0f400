"""`hydra/launcher=ray`: rows as without it, resumed as without it, and points of a lost node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from tests.cluster_demo.machines import Machines
from tests.helpers.command_line import run
from tpi_bench import load

pytestmark = pytest.mark.cluster
MODELLED = (
    *("-m", "task=measure", "testbed=virtual", "model=debug", "workload.prompt_tokens=8"),
    *("workload.num_new_tokens=4", "system=tpi,pipeline", "testbed.num_devices=2,3"),
    *("network.link_latency_ms=0,1", "progress=false"),
)
MANY = (*MODELLED, "network.bandwidth_mbps=range(100,108)")


def on_ray(machines: Machines, *arguments: str) -> list[str]:
    ours = ["hydra/launcher=ray", f"hydra.launcher.address={machines.address}"]
    return machines.command(0, [sys.executable, "-m", "tpi_bench", *arguments, *ours])


def finished(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


def test_rows_are_those_of_this_host(machines: Machines, cache_dir: Path, tmp_path: Path) -> None:
    done = run(*MODELLED, f"output_dir={tmp_path / 'here'}", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    there = finished(
        on_ray(machines, *MODELLED, f"output_dir={tmp_path / 'there'}", f"cache_dir={cache_dir}")
    )
    assert there.returncode == 0, there.stderr
    here, found = load(tmp_path / "here"), load(tmp_path / "there")
    for name in ("runs", "tokens", "devices"):
        others = ["started", "wall_s", "pid", "overrides"]
        tables = [
            getattr(each, name).drop(columns=others, errors="ignore") for each in (found, here)
        ]
        pd.testing.assert_frame_equal(*tables)
    assert "[8/8] system=pipeline testbed.num_devices=3" in there.stderr
    assert found.devices.pid.nunique() > 1


def test_measured_points_of_one_model_are_measured_on_one_node(
    machines: Machines, cache_dir: Path, tmp_path: Path
) -> None:
    done = finished(
        on_ray(
            machines,
            *("-m", "task=measure", "model=debug", "workload.prompt_ids=[1,2]", "progress=false"),
            *("workload.num_new_tokens=3", "system=tpi,pipeline", f"output_dir={tmp_path / 'x'}"),
            f"cache_dir={cache_dir}",
        )
    )
    assert done.returncode == 0, done.stderr
    runs = load(tmp_path / "x").runs
    assert list(runs.status) == ["ok", "ok"]
    assert list(runs.system) == ["tpi", "pipeline"]


def test_a_lost_nodes_points_run_elsewhere_and_a_stopped_sweep_is_resumed(
    machines: Machines, cache_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    command = on_ray(machines, *MANY, f"output_dir={folder}", f"cache_dir={cache_dir}")
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _await_points(folder, 4)
    machines.kill(1)
    try:
        _await_points(folder, 40)  # more than were handed out by then
        os.kill(sweep.pid, 2)  # Ctrl-C
        _, said = sweep.communicate(timeout=60)
        assert sweep.returncode == 130
        assert "its points run elsewhere" in said
        done = len(list(folder.glob("points/*.json")))
        resumed = finished(on_ray(machines, f"resume={folder}"))
    finally:
        sweep.kill()
        machines.start(1)
    assert resumed.returncode == 0, resumed.stderr
    runs = load(folder).runs
    assert done < len(runs) == 64
    assert set(runs.status) == {"ok"}


def _await_points(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(list(folder.glob("points/*.json"))) >= count:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{folder} has not got {count} points")
