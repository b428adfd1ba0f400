"""The virtual testbed: its settings, what it says of devices and networks, and its own process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models_zoo import oracle
from tests.helpers.virtual import IDEAL, MS, PAPER, REQUEST, virtual_job
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.testbed import Rates
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host.interpreter import GROWTH_BYTES, free_of_caps
from tpi_bench.virtual.testbed import VirtualTestbed


def test_the_testbed_runs_in_its_own_process_and_tells_the_tokens(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "logits.pt"
    job = virtual_job(
        TpiSystem(collective="tree", window=2),
        checkpoints["gqa"],
        cache_dir,
        4,
        network=replace(PAPER, link_latency_ms=0.05),
        logits_path=str(path),
    )
    told: list[int] = []
    outcome = VirtualTestbed(cost="measured").run(job, told.append, cache_dir)
    assert outcome.status == "ok", outcome.error
    expected_ids, expected_logits = oracle(
        checkpoints["gqa"], REQUEST.prompt_ids, REQUEST.num_new_tokens
    )
    assert told == expected_ids
    assert (torch.load(path) - expected_logits).abs().max() < 1e-3
    assert outcome.round_trips_ns
    assert set(outcome.round_trips_ns) == {8 * MS // 20}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_devices": 0}, "testbed.num_devices=0 must be at least 1"),
        ({"cost": "free"}, "testbed.cost=free is unknown; choose modelled or measured"),
        ({"threads_per_device": 0}, "testbed.threads_per_device=0 must be at least 1"),
        ({"proportions": "size"}, "testbed.proportions=size must be a list of numbers, strength"),
        ({"fail_at_s": -1}, "testbed.fail_at_s=-1 must be at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirtualTestbed(**settings)


def test_only_a_device_of_the_run_can_fail(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    job = virtual_job(TpiSystem(), checkpoints["gqa"], cache_dir, 2)
    with pytest.raises(ValueError, match=r"testbed\.fail_rank=2 must be 0 to 1"):
        VirtualTestbed(fail_rank=2).run(job, None, cache_dir)


class Library(TpiSystem):
    """A system that virtual time cannot run."""

    stand_in = "system=tpi"


def test_what_virtual_time_cannot_do_is_refused() -> None:
    modelled, measured = VirtualTestbed(), VirtualTestbed(cost="measured")
    for testbed in (modelled, measured):
        testbed.check(TpiSystem(), NetworkConfig(topology="wifi"), needs_tokens=False)
        with pytest.raises(ValueError, match=r"system=tpi runs a real library, .* is system=tpi"):
            testbed.check(Library(), PAPER, needs_tokens=False)
    measured.check(TpiSystem(), PAPER, needs_tokens=True)
    with pytest.raises(ValueError, match=r"check=true needs real tokens"):
        modelled.check(TpiSystem(), PAPER, needs_tokens=True)


class Source:
    """A profile that is made when it is asked for."""

    def load(self, cache_dir: Path) -> DeviceProfile:
        return replace(IDEAL, name=cache_dir.name, memory_gb=3)


def test_profiles_are_loaded_one_a_device_and_capped(tmp_path: Path) -> None:
    testbed, source = VirtualTestbed(), Source()
    free = testbed.profiles([source], 2, None, tmp_path)
    assert [profile.name for profile in free] == [tmp_path.name] * 2
    assert testbed.free_bytes(free, None) == (3_000_000_000, 3_000_000_000)
    capped = testbed.profiles([source, IDEAL], 2, (500_000_000, 700_000_000), tmp_path)
    assert [profile.name for profile in capped] == [tmp_path.name, "this_host"]
    assert testbed.free_bytes(capped, None) == (500_000_000, 700_000_000)
    with pytest.raises(ValueError, match="names 2 devices"):
        testbed.profiles([source, source], 3, None, tmp_path)


def test_of_a_cap_the_interpreter_takes_its_part(tmp_path: Path) -> None:
    """As on real devices, where asked; and one that leaves nothing is refused."""
    plain, twin = VirtualTestbed(), VirtualTestbed(counts_interpreter=True)
    (whole,) = plain.profiles([IDEAL], 1, [400_000_000], tmp_path)
    (left,) = twin.profiles([IDEAL], 1, [400_000_000], tmp_path)
    assert whole.memory_bytes == 400_000_000
    assert (left.memory_bytes,) == pytest.approx(free_of_caps([400_000_000]), abs=1)
    assert GROWTH_BYTES < 400_000_000 - left.memory_bytes < 1_000_000_000
    assert twin.profiles([IDEAL], 1, None, tmp_path) == plain.profiles([IDEAL], 1, None, tmp_path)
    with pytest.raises(
        ValueError, match=r"device\.memory_mb=9 is not above the \d+ MB that Python"
    ):
        twin.profiles([IDEAL], 1, [9_000_000], tmp_path)


def test_only_measured_costs_of_other_devices_need_this_host() -> None:
    other = replace(IDEAL, name="other")
    measured = VirtualTestbed(cost="measured")
    assert measured.needs_host([IDEAL, other])
    assert not measured.needs_host([IDEAL, IDEAL])
    assert not VirtualTestbed().needs_host([IDEAL, other])


def job_on(*profiles: DeviceProfile) -> Job:
    config = ModelConfig(
        num_layers=1,
        hidden=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        intermediate=8,
        vocab=8,
        context_length=8,
    )
    return Job(
        program=TpiSystem(),
        config=config,
        dtype="float32",
        weights="float32",
        num_devices=len(profiles),
        plan=None,
        blocks=[],
        request=REQUEST,
        network=PAPER,
        threads_per_device=1,
        profiles=profiles,
    )


def test_limits_and_names_are_those_of_the_profiles() -> None:
    slow = replace(IDEAL, name="slow", cores=8, used_cores=4, memory_gb_per_s=5, disk_gb_per_s=0.5)
    fast = replace(IDEAL, name="fast", memory_gb_per_s=50, disk_gb_per_s=2)
    job, testbed = job_on(slow, slow, fast), VirtualTestbed(shares_disk=True)
    assert testbed.rates(job) == Rates(
        memory_bps=(5e9, 5e9, 50e9), disk_bps=(5e8, 5e8, 2e9), is_one_disk=True
    )
    assert testbed.one_way_s(job, [9 * MS]) == 0.004  # as asked, not as measured
    assert testbed.one_way_s(job_on(fast), []) == 0
    machines = testbed.machines(job)
    assert (machines.names, machines.cores_per_device) == ("2 x slow, fast", 4)
    assert not machines.share_cores
    assert testbed.where(job) == (
        "2 x slow, fast, modelled cost, virtual time (paper network, 1 ms a hop)"
    )


def test_rows_say_what_virtual_time_means() -> None:
    modelled, measured = VirtualTestbed(), VirtualTestbed(cost="measured")
    assert modelled.note == "virtual time with modelled cost; the tokens mean nothing"
    assert measured.note == "virtual time with measured cost"
    assert (modelled.opens_files, measured.opens_files) == (False, True)
