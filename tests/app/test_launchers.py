"""Launcher plug-ins: points of virtual time side by side, measured ones not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import run
from tpi_bench import Results, load, sweep

POINTS = (
    "testbed=virtual",
    "model=debug",
    "workload.prompt_tokens=8",
    "workload.num_new_tokens=4",
    "testbed.num_devices=2,9",
)
BY_CIRCUMSTANCE = ["started", "wall_s"]


def same_rows(found: Results, expected: Results) -> None:
    for name in ("runs", "tokens", "devices"):
        tables = [
            getattr(results, name)
            .drop(columns=[*BY_CIRCUMSTANCE, "pid"], errors="ignore")
            .sort_values(["point", *{"token_index", "rank"} & {*getattr(results, name)}])
            .reset_index(drop=True)
            for results in (found, expected)
        ]
        pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize(
    ("launcher", "systems"), [("joblib", "tpi,pipeline"), ("submitit_local", "pipeline")]
)
def test_the_same_rows_side_by_side(
    tmp_path: Path, cache_dir: Path, launcher: str, systems: str
) -> None:
    points = [*POINTS, f"system={systems}"]
    one_after_another = sweep(*points, f"results_dir={tmp_path / 'basic'}", show=False)
    done = run(
        "-m",
        "task=measure",
        f"hydra/launcher={launcher}",
        *points,
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 5  # nine devices are more than the model has heads
    assert "Traceback" not in done.stderr
    (folder,) = (tmp_path / "measure").iterdir()
    found = load(folder)
    same_rows(found, one_after_another)
    num_systems = len(systems.split(","))
    assert len(found.failed) == num_systems
    assert found.devices.pid.nunique() == num_systems
    assert "ms a token" in done.stdout  # the table


def test_workers_show_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where nothing is to be shown."""
    asked = [*POINTS, "testbed.num_devices=2", "system=tpi,pipeline", "hydra/launcher=joblib"]
    assert len(sweep(*asked, f"results_dir={tmp_path}", show=False)) == 2
    assert capfd.readouterr() == ("", "")


def test_measured_points_side_by_side_are_refused(tmp_path: Path, cache_dir: Path) -> None:
    for testbed in ("processes", "virtual_measured", "virtual,processes"):
        with pytest.raises(ValueError, match="joblib runs points side by side on this host, where"):
            sweep(
                "hydra/launcher=joblib",
                "model=debug",
                "workload.prompt_ids=[1]",
                f"testbed={testbed}",
                f"results_dir={tmp_path}",
                f"cache_dir={cache_dir}",
                show=False,
            )
