"""The virtual testbed from the command line: devices by name, refusals, failures as rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import ROOT, report_of, run, sweep
from tests.helpers.settings import settings_of
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.measure.prepare import prepare

VIRTUAL = ("testbed=virtual", "model=debug", "workload.prompt_tokens=8")
PROFILES = sorted(path.stem for path in (ROOT / "conf" / "device").glob("*.yaml"))


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_whole_and_has_its_file_name(name: str) -> None:
    (device,) = settings_of("testbed=virtual", f"device={name}").profiles
    assert device.name == name
    if name != "this_host":
        assert isinstance(device, DeviceProfile)
        assert device.source


def test_devices_keep_their_order_and_number() -> None:
    names = ["raspberry_pi_5", "dell_i7_1165g7", "dell_i7_1165g7", "macbook_pro_m1"]
    settings = settings_of("testbed=virtual", f"device=[{','.join(names)}]")
    assert [device.name for device in settings.profiles] == names
    assert settings.num_devices == 4
    assert settings.point != settings_of("testbed=virtual", f"device=[{','.join(names[:3])}]").point


def test_a_plan_follows_strength(cache_dir: Path) -> None:
    settings = settings_of(
        *VIRTUAL,
        "device=[macbook_pro_m1,raspberry_pi_5]",
        "testbed.proportions=strength",
        f"cache_dir={cache_dir}",
    )
    plan = prepare(settings).job.plan
    assert plan is not None
    strong, weak = (next(s for s in own if s.kind == "ffn").columns for own in plan.shards)
    assert strong[1] - strong[0] > 3 * (weak[1] - weak[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("system=transformers",), "its stand-in there is system=tpi testbed.num_devices=1"),
        (("check=true", "task=measure"), "testbed.cost=modelled has none"),
        (("testbed.cost=guessed",), "choose one of modelled, measured"),
        (("testbed.proportions=weakness",), "must be a list of numbers, strength or null"),
        (("device=[dell_i7_1165g7,macbook_pro_m1]", "testbed.num_devices=3"), "names 2 devices"),
        (("testbed.num_devices=2", "testbed.fail_rank=2"), "fail_rank=2 must be 0 to 1"),
        (("device.paper_emulated.used_cores=9",), "used_cores=9 must be 1 to 4"),
        (("network=mesh", "testbed.num_devices=5"), "no way from device 0"),
        (("testbed=processes", "network=wifi"), "exists in virtual time only"),
    ],
)
def test_what_cannot_be_is_one_line(
    overrides: tuple[str, ...], message: str, cache_dir: Path
) -> None:
    done = run(*VIRTUAL, *overrides, "report=json", cache_dir=cache_dir)
    assert done.returncode == 2
    assert message in report_of(done)["error"]
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "code", "status", "reason"),
    [
        (("device.paper_emulated.memory_gb=0.0001",), 3, "oom", "paper_emulated has 0.0001 GB"),
        (
            ("testbed.fail_rank=1", "testbed.fail_at_s=0.001"),
            1,
            "device_lost",
            "rank 1 failed at 0.001 s",
        ),
    ],
)
def test_a_device_that_fails_is_a_row(
    overrides: tuple[str, ...], code: int, status: str, reason: str, cache_dir: Path
) -> None:
    done = run(*VIRTUAL, *overrides, "testbed.num_devices=2", "report=json", cache_dir=cache_dir)
    report = report_of(done)
    assert done.returncode == code
    assert report["status"] == status
    assert report["exit_reason"] == {3: "out_of_memory", 1: "error"}[code]
    assert reason in report["error"]


def test_every_network_runs_and_says_what_it_is(cache_dir: Path, tmp_path: Path) -> None:
    names = ["none", "switch", "paper", "wifi", "wan", "mesh"]
    folder = sweep(
        *VIRTUAL,
        f"network={','.join(names)}",
        "testbed.num_devices=3",
        cache_dir=cache_dir,
        tmp_path=tmp_path,
    )
    runs = pd.read_parquet(folder / "runs.parquet")
    assert (runs.status == "ok").all()
    assert runs.topology.tolist() == names
    assert (runs.token_latency_s > runs.limit_token_s).all()
