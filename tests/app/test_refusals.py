"""Sweeps that cannot be: refused before the first point, in one line, with nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import run

VIRTUAL = ["testbed=virtual", "model=debug", "workload.prompt_tokens=3"]
REAL = ["model=debug", "workload.prompt_ids=[1]", "workload.num_new_tokens=2"]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ([*VIRTUAL, "testbed.num_devices=2,0"], "testbed.num_devices=0 must be at least 1"),
        ([*VIRTUAL, "system.collective=star,stra"], "system.collective=stra is unknown; choose "),
        ([*VIRTUAL, "workload.num_new_tokens=2,0"], "workload.num_new_tokens=0 must be at least"),
        ([*VIRTUAL, "timeout_s=9,-1"], "timeout_s=-1 must be above 0 seconds, or null"),
        (
            [*VIRTUAL, "system.window=2", "system.loading=overlapped,blocking"],
            "system.window=2 with system.loading=blocking, which holds",
        ),
        ([*VIRTUAL, "system=tpi,transformers"], "system=transformers runs a real library, which "),
        ([*VIRTUAL, "testbed.num_devices=2", "testbed.proportions=[1,2],[1,2,3]"], "must hold 2 "),
        ([*REAL, "network=switch,wifi"], "network=wifi: network.topology=wifi exists in virtual "),
        ([*REAL, "network.tls=true"], "network.tls=true encrypts what machines of a cluster"),
        ([*REAL, "device.memory_mb=900,[1,2,3]"], "[1, 2, 3] names 3 devices, but there are 2; "),
        ([*VIRTUAL, "system=tpi,tpy"], "there is no system=tpy; did you mean system=tpi?"),
        ([*VIRTUAL, "hydra/launcher=jobli"], "did you mean hydra/launcher=joblib?"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_value_that_no_point_can_have_is_refused_before_the_first(
    typed: list[str], line: str, cache_dir: Path, tmp_path: Path
) -> None:
    results = tmp_path / "made" / "for_it"
    done = run("-m", "task=measure", *typed, f"results_dir={results}", cache_dir=cache_dir)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: ")
    assert line in said
    assert not list(tmp_path.iterdir())


def test_what_does_not_go_together_in_part_is_left_out(cache_dir: Path, tmp_path: Path) -> None:
    """Each value works somewhere: the others are measured, and the status says so."""
    typed = [*VIRTUAL, "system.window=2,off", "system.loading=blocking,overlapped"]
    folder = tmp_path / "out"
    done = run("-m", "task=measure", *typed, f"output_dir={folder}", cache_dir=cache_dir)
    assert done.returncode == 5
    assert "left out: system.window=2 with system.loading=blocking" in done.stderr
    runs = pd.read_parquet(folder / "runs.parquet")
    found = list(zip(runs.system_window, runs.system_loading, strict=True))
    assert found == [("2", "overlapped"), ("off", "blocking"), ("off", "overlapped")]


def test_a_refused_sweep_leaves_a_folder_that_was_there(cache_dir: Path, tmp_path: Path) -> None:
    typed = ["-m", "task=measure", *VIRTUAL, "testbed.num_devices=0,-1"]
    done = run(*typed, f"output_dir={tmp_path}", cache_dir=cache_dir)
    assert done.returncode == 2
    assert tmp_path.is_dir()
    done = run(*typed, f"results_dir={tmp_path}", "name=mine", cache_dir=cache_dir)
    assert done.returncode == 2
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("report", ["text", "json"])
def test_a_sweep_of_answers_goes_on_after_a_failure(
    report: str, cache_dir: Path, tmp_path: Path
) -> None:
    """As it would with task=measure: each failure is told, and the end has its own status."""
    typed = ["-m", *VIRTUAL, "workload.num_new_tokens=2", "testbed.num_devices=20,1,2"]
    typed += ["testbed.fail_rank=null,0", f"results_dir={tmp_path}", f"report={report}"]
    done = run(*typed, cache_dir=cache_dir)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1] == "4 of 6 points failed"
    assert done.stderr.count("error: testbed.num_devices=20 is more than the model's 6 att") == 2
    assert done.stderr.count("device_lost: rank 0 ") == 2
    assert not list(tmp_path.iterdir())  # there is no row that could be kept
    if report == "text":
        assert done.stdout.count("token latency") == 2
    else:
        found = [json.loads(line) for line in done.stdout.splitlines()]
        statuses = ["error", "error", "ok", "device_lost", "ok", "device_lost"]
        assert [each["status"] for each in found] == statuses
        assert all("model=debug" in each["overrides"] for each in found)
