"""Memory caps: enforced by the kernel, said in rows, and gone when the job is."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.helpers.command_line import ROOT, run, sweep
from tests.helpers.models_zoo import prompt_of
from tests.helpers.processes import LONG, no_children_left, signal_later, timed
from tests.helpers.running import make_job, run_ok
from tests.helpers.saboteur import NUM_BYTES, Saboteur
from tests.helpers.settings import settings_of
from tpi_bench.contract.job import Job
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Request
from tpi_bench.contract.system import System
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host import cgroups, helper, page_cache
from tpi_bench.measure.prepare import prepare
from tpi_bench.processes import caps
from tpi_bench.processes.launcher import run_job
from tpi_bench.report.rows import RunRow

pytestmark = pytest.mark.usefixtures("as_a_user_forks")

SHORT = Request(prompt_ids=prompt_of(5), num_new_tokens=3)
MB = 1_000_000


def group_parents() -> list[Path]:
    return [parent for _, parent in cgroups._parents(Path("/proc/self"), may_enable=False)]


def groups_of(pid: int) -> list[Path]:
    return [folder for parent in group_parents() for folder in parent.glob(f"tpi_bench-{pid}-*")]


def test_a_device_starts_with_no_library_that_it_does_not_need() -> None:
    """Each would be megabytes of its memory; numba alone would load scipy."""
    modules = helper.shared_helper().call(eval, "sorted(__import__('sys').modules)")  # no file's
    asked = {"torch", "numba", "scipy", "transformers", "accelerate", "pandas"}
    assert asked.intersection(modules) == {"torch", "numba"}


@pytest.fixture(scope="session")
def real_groups() -> None:
    groups = cgroups.make_groups(1, may_enable=False)
    if not groups:
        pytest.skip("this system lets no memory cgroup be made")
    assert groups[0].remove()


@pytest.fixture
def no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("RLIMIT_DATA bounds nothing here")
    monkeypatch.setattr(cgroups, "make_groups", lambda *args, **kwargs: [])


def job_of(system: System, checkpoints: dict[str, Path], cache_dir: Path, **extra: Any) -> Job:
    defaults = {"num_devices": 1, "request": SHORT}
    return make_job(system, checkpoints["gqa"], cache_dir, **(defaults | extra))


# What is asked for


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("device.memory_mb=0", "device.memory_mb=0 must be a number above 0 for all devices"),
        ("device.memory_mb=-1", "device.memory_mb=-1 must be"),
        ("device.memory_mb=much", "device.memory_mb=much must be"),
        ("device.memory_mb=true", "device.memory_mb=True must be"),
        ("device.memory_mb=[]", r"device.memory_mb=\[\] must be"),
        ("device.memory_mb=[400,x]", r"device.memory_mb=\[400, 'x'\] must be"),
        ("cache=lukewarm", "cache=lukewarm is unknown; choose one of cold, warm"),
        ("timeout_s=0", "timeout_s=0 must be above 0 seconds, or null"),
        ("timeout_s=soon", "timeout_s=soon has the wrong type"),
    ],
)
def test_what_makes_no_sense_is_refused(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(given)


def test_one_number_stands_for_all_and_a_list_for_each() -> None:
    assert settings_of("testbed.num_devices=2").memory_bytes is None
    given = settings_of("testbed.num_devices=2", "device.memory_mb=0.5").memory_bytes
    assert given == (500_000, 500_000)
    three = settings_of("testbed.num_devices=3", "device.memory_mb=[400,300,200]")
    assert three.memory_bytes == (400 * MB, 300 * MB, 200 * MB)
    two = settings_of("testbed.num_devices=2", "device.memory_mb=[400,300,200]")
    with pytest.raises(ValueError, match="names 3 devices, but there are 2; give one number"):
        _ = two.memory_bytes


def test_a_cap_and_the_page_cache_are_part_of_a_point_and_a_time_limit_is_not() -> None:
    points = [
        settings_of(*given).point
        for given in ((), ("device.memory_mb=400",), ("device.memory_mb=500",), ("cache=warm",))
    ]
    assert len(set(points)) == 4
    assert settings_of("timeout_s=5").point == points[0]
    virtual = settings_of("testbed=virtual")
    assert settings_of("testbed=virtual", "cache=warm").point == virtual.point
    assert settings_of("testbed=virtual", "device.memory_mb=9").point != virtual.point


def test_in_virtual_time_a_cap_is_the_memory_of_the_profile(cache_dir: Path) -> None:
    virtual = ("testbed=virtual", "model=debug", "workload.prompt_tokens=8")
    done = run(*virtual, "device.memory_mb=0.1", cache_dir=cache_dir)
    assert done.returncode == 3
    assert "oom: rank 0" in done.stderr
    assert "paper_emulated has 0.0001 GB; what fits: device.memory_mb=" in done.stderr


# What the kernel does


def test_who_takes_more_than_its_cap_is_killed_and_named(
    real_groups: None, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    allowed = (5000 * MB, 350 * MB)
    job = job_of(Saboteur(1, "allocate", window=2), checkpoints, cache_dir, num_devices=2)
    outcome = run_job(replace(job, memory_bytes=allowed))
    assert outcome.status == "oom"
    assert outcome.memory_cap.startswith("cgroup v")
    assert outcome.error is not None
    assert outcome.error.startswith("rank 1 ran out of memory: the kernel killed it with ")
    assert "; its weights are " in outcome.error
    assert "; device.memory_mb=350 allows " in outcome.error
    assert 100 * MB < outcome.peak_cgroup_bytes < 350 * MB
    assert not groups_of(os.getpid())
    assert no_children_left()


def test_who_keeps_to_its_cap_is_measured(
    real_groups: None, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    job = job_of(Saboteur(0, "allocate"), checkpoints, cache_dir)
    for cap in (None, (1500 * MB,)):
        (device,) = run_ok(replace(job, memory_bytes=cap)).devices
        assert NUM_BYTES < device.peak_cgroup_bytes < NUM_BYTES + 100 * MB
        assert device.peak_anon_bytes > device.start_anon_bytes + NUM_BYTES
    limit = device.memory_limit_bytes
    assert math.isclose(limit, 1500 * MB - device.start_anon_bytes, rel_tol=0.01)


def test_a_program_that_needs_no_torch_is_granted_the_whole(
    real_groups: None, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    job = job_of(Thin(0, "none"), checkpoints, cache_dir, memory_bytes=(100 * MB,))
    (device,) = run_ok(job).devices
    assert device.memory_limit_bytes == 100 * MB


class Thin(Saboteur):
    uses_torch = False


def test_pages_of_mapped_files_count_and_are_given_up(
    real_groups: None, checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(1 << 20) * 100)
    job = job_of(Saboteur(0, "map"), checkpoints, cache_dir)
    job = replace(job, checkpoint_path=str(file))
    page_cache.drop(str(file))
    if page_cache.cached_bytes([str(file)]):
        pytest.skip("this file system keeps files in memory")
    (free,) = run_ok(job).devices
    assert free.peak_cgroup_bytes > 100 << 20
    assert free.peak_file_bytes > 100 << 20
    assert free.disk_bytes_read >= 100 << 20

    page_cache.drop(str(file))
    bound = round(free.start_anon_bytes) + 60 * MB
    (capped,) = run_ok(replace(job, memory_bytes=(bound,))).devices
    assert capped.peak_cgroup_bytes <= capped.memory_limit_bytes < 100 << 20
    assert capped.peak_anon_bytes == pytest.approx(free.peak_anon_bytes, rel=0.2)


def test_without_cgroups_reserved_memory_is_bounded(
    no_groups: None, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    job = job_of(Saboteur(0, "allocate"), checkpoints, cache_dir, memory_bytes=(450 * MB,))
    outcome = run_job(job)
    assert outcome.status == "oom"
    assert outcome.memory_cap == caps.RESERVED
    assert outcome.error is not None
    assert "rank 0 ran out of memory: " in outcome.error
    assert "Unable to allocate 381. MiB" in outcome.error  # numpy's words
    assert "device.memory_mb=450 allows " in outcome.error
    assert math.isnan(outcome.peak_cgroup_bytes)
    run_ok(replace(job, memory_bytes=(1500 * MB,)))


def test_a_cap_below_what_a_device_starts_with_is_one_line(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    outcome = run_job(job_of(TpiSystem(), checkpoints, cache_dir, memory_bytes=(20 * MB,)))
    assert outcome.status == "oom"
    assert outcome.error is not None
    said = "rank 0 ran out of memory: device.memory_mb=20 is not above the "
    assert outcome.error.startswith(said)
    assert outcome.error.endswith(" MB that a device has before it loads anything")


@pytest.mark.parametrize("system", ["tpi", "tpi_auto", "transformers"])
def test_a_cap_that_nothing_starts_within_is_told_with_what_fits(
    system: str, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """Before a device starts, in one line, by the engine and by a library."""
    typed = [f"system={system}", "model=hf", f"model.path={checkpoints['gqa']}"]
    done = run(*typed, "workload.prompt_ids=[1,2]", "device.memory_mb=1", cache_dir=cache_dir)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "device.memory_mb=1 is too little for " in line
    if system == "transformers":
        assert line.endswith("what fits: a larger device.memory_mb")
    else:
        (least,) = re.findall(r"(?:what fits: |at least )device\.memory_mb=(\d+)", line)
        assert 100 < int(least) < 400


def test_what_is_said_of_who_ran_out(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """What to do about it is for `measure/fits.py` to say."""
    job = job_of(TpiSystem(), checkpoints, cache_dir)
    text = caps.Caps(job).oom_text(0, caps.Limit(), "so it said")
    assert text.startswith("ran out of memory: so it said; its weights are ")
    assert text.endswith("; this system has no more")
    capped = job_of(TpiSystem(window=2), checkpoints, cache_dir, memory_bytes=(400 * MB,))
    limit = caps.Limit(limit_bytes=300 * MB, base_bytes=100 * MB)
    text = caps.Caps(capped).oom_text(0, limit, "so it said")
    assert text.endswith("; device.memory_mb=400 allows 300 MB beside the 100 MB of its start")


def test_a_planned_device_stays_within_its_cap(real_groups: None, cache_dir: Path) -> None:
    """Of 344 MB of weights about half fit; with no other setting than the cap."""
    given = [
        "model=debug",
        "model.num_layers=24",
        "model.hidden=480",
        "model.intermediate=2000",
        "model.share_layers=true",
        "testbed.num_devices=1",
        "workload.prompt_tokens=20",
        "workload.num_new_tokens=4",
        "system.window=auto",
        f"cache_dir={cache_dir}",
    ]
    settings = settings_of(*given, "device.memory_mb=420")
    job = prepare(settings).job
    plan = settings.system.streaming(job, 0)
    assert plan.streamed_bytes > 100 * MB
    (device,) = run_ok(job).devices
    assert sum(device.ledger_bytes.values()) <= job.free_of(0)
    assert 100 * MB < plan.kept_bytes < device.peak_cgroup_bytes <= device.memory_limit_bytes
    with pytest.raises(ValueError, match=r"device.memory_mb=200 is too little for the largest"):
        prepare(settings_of(*given, "device.memory_mb=200"))


# What is left


def test_the_groups_of_a_killed_device_are_removed(
    real_groups: None, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    network = NetworkConfig(topology="switch", link_latency_ms=2)
    job = job_of(TpiSystem(), checkpoints, cache_dir, num_devices=3, request=LONG, network=network)
    killer = signal_later(signal.SIGKILL)
    outcome = run_job(job)
    killer.join()
    assert outcome.status == "device_lost"
    assert not groups_of(os.getpid())


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.product), signal.SIGKILL]
)
def test_the_groups_of_a_stopped_launcher_are_removed(
    real_groups: None, cache_dir: Path, number: int
) -> None:
    """By itself, or by the next one."""
    command = "model=debug workload.prompt_ids=[1] workload.num_new_tokens=400 "
    command += f"network.link_latency_ms=5 device.memory_mb=900 cache_dir={cache_dir}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tpi_bench", *command.split()], stdout=subprocess.PIPE, cwd=ROOT
    )
    deadline = time.monotonic() + 30
    while not groups_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    assert len(groups_of(process.pid)) == 2
    process.send_signal(number)
    process.communicate(timeout=20)
    if number == signal.SIGKILL:
        time.sleep(1.0)  # devices notice
        for group in cgroups.make_groups(1, may_enable=False):
            group.remove()
    assert not groups_of(process.pid)


# Time


@pytest.mark.parametrize(("harm", "doing"), [("slow", "computing"), ("loop", "running")])
def test_a_point_that_takes_longer_than_it_may(
    checkpoints: dict[str, Path], cache_dir: Path, harm: str, doing: str
) -> None:
    job = job_of(Saboteur(0, harm), checkpoints, cache_dir, timeout_s=1.0)
    outcome, took = timed(job)
    reason = f"rank 0 was still {doing} after 1 s (timeout_s)"
    assert (outcome.status, outcome.error) == ("timeout", reason)
    assert 1.0 <= outcome.wall_s < took < 4
    assert no_children_left()
    assert not groups_of(os.getpid())


def test_a_wait_is_told_from_work(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    job = job_of(Saboteur(1, "loop"), checkpoints, cache_dir, num_devices=2, timeout_s=3.0)
    assert run_job(job).error == "rank 0 was still waiting for rank 1 after 3 s (timeout_s)"


def test_virtual_time_has_a_limit_of_wall_time(cache_dir: Path) -> None:
    virtual = ("testbed=virtual", "model=llama2_70b", "model.weights=q4", "system.window=2")
    longer = ("workload.prompt_tokens=8", "workload.num_new_tokens=500", "timeout_s=0.001")
    done = run(*virtual, *longer, "testbed.num_devices=8", cache_dir=cache_dir)
    assert done.returncode == 4
    assert "timeout: virtual time had not come to its end after 0.001 s (timeout_s)" in done.stderr


def test_what_took_as_long_as_it_might_is_an_answer_and_a_hang_is_not() -> None:
    runs = [
        {"status": "ok", "timeout_s": math.nan, "wall_s": 1.0},
        {"status": "oom", "timeout_s": math.nan, "wall_s": 1.0},
        {"status": "timeout", "timeout_s": 5.0, "wall_s": 5.2},
        {"status": "timeout", "timeout_s": 5.0, "wall_s": 3.0},
        {"status": "timeout", "timeout_s": math.nan, "wall_s": 60.0},
        {"status": "error", "timeout_s": 5.0, "wall_s": 6.0},
    ]
    answers = [RunRow.from_cells(cells).is_answer for cells in runs]
    assert answers == [True, True, True, False, False, False]
    old = [RunRow.from_cells({"status": cells["status"]}).is_answer for cells in runs]
    assert old == [True, True, False, False, False, False]


# Rows


@pytest.mark.skipif(sys.platform != "linux", reason="no cap is enforced here")
def test_a_sweep_with_caps(cache_dir: Path, tmp_path: Path) -> None:
    """What fits only with a window runs with a window, with the same tokens; the rest is a row."""
    folder = sweep(
        "model=debug",
        "model.num_layers=12",
        "model.hidden=480",
        "model.intermediate=2000",
        "model.share_layers=true",
        "testbed.num_devices=1",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=4",
        "system.window=2,off",
        "device.memory_mb=null,300",
        cache_dir=cache_dir,
        tmp_path=tmp_path,
    )
    runs = pd.read_parquet(folder / "runs.parquet")
    names = zip(runs.system_window, runs.memory_mb.fillna(0), strict=True)
    found = dict(zip(names, runs.status, strict=True))
    assert found.pop(("off", 300.0)) == "oom"
    assert found == {("2", 300.0): "ok", ("2", 0.0): "ok", ("off", 0.0): "ok"}
    (error,) = runs.error.dropna()
    assert error.startswith("device.memory_mb=300 is too little for device 0, which needs ")
    assert re.search(r" 17\d of weights, ", error)
    assert "; what fits: " in error
    assert "system.window=auto (" in error
    assert set(runs.cache.dropna()) == {"cold"}
    assert (runs.pss_interval_s.dropna() >= 0.5).all()
    tokens = pd.read_parquet(folder / "tokens.parquet").groupby("point").token_id.agg(tuple)
    assert len(tokens) == 3
    assert tokens.nunique() == 1
    devices = pd.read_parquet(folder / "devices.parquet")
    assert (devices.peak_pss_bytes > 0).all()
    if (runs.cached_bytes_start.dropna() == 0).all():  # else the file system keeps files in memory
        assert (devices.disk_bytes_read > 0).all()
