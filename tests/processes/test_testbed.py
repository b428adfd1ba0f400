"""What the `processes` testbed says of itself: threads, pins, memory, links, where a job runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models_zoo import prompt_of
from tests.helpers.running import make_job
from tpi_bench.contract.job import Job
from tpi_bench.contract.network import VIRTUAL_ONLY, NetworkConfig
from tpi_bench.contract.request import Request
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host.machine import available_cpus
from tpi_bench.processes.testbed import ProcessesTestbed

SWITCH = NetworkConfig(topology="switch", link_latency_ms=1)
TABLES: dict[str, Any] = {
    "wan": {"latency_matrix_ms": [[0, 1], [1, 0]]},
    "mesh": {"mesh_links": [[0, 1, 1, 0]]},
}


@pytest.fixture
def job(checkpoints: dict[str, Path], cache_dir: Path) -> Job:
    request = Request(prompt_ids=prompt_of(5), num_new_tokens=2)
    folder = checkpoints["gqa"]
    return make_job(TpiSystem(), folder, cache_dir, num_devices=2, request=request, network=SWITCH)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_devices": 0}, "num_devices=0 must be at least 1"),
        ({"threads_per_device": 0}, "threads_per_device=0 must be a whole number"),
        ({"threads_per_device": "many"}, "threads_per_device=many"),
    ],
)
def test_bad_testbeds_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessesTestbed(**values)


def test_threads_and_pins_follow_the_cores() -> None:
    cores = available_cpus()
    assert ProcessesTestbed().threads(1) == len(cores)
    assert ProcessesTestbed().threads(1000) == 1
    assert ProcessesTestbed(threads_per_device=3).threads(1000) == 3
    assert ProcessesTestbed().cpus(4, 1) is None
    pins = ProcessesTestbed(pin_cpus=True).cpus(4, 1)
    assert pins is not None
    assert [pin[0] for pin in pins] == [cores[rank % len(cores)] for rank in range(4)]


@pytest.mark.parametrize("topology", VIRTUAL_ONLY)
def test_what_cannot_be_emulated_is_refused(topology: str) -> None:
    testbed = ProcessesTestbed()
    testbed.check(TpiSystem(), SWITCH, needs_tokens=True)
    network = NetworkConfig(topology=topology, **TABLES.get(topology, {}))
    with pytest.raises(ValueError, match="exists in virtual time only; use testbed=virtual, or "):
        testbed.check(TpiSystem(), network, needs_tokens=True)


def test_a_job_is_described(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpi_bench.processes.testbed.available_cpus", lambda: [0, 1])
    testbed = ProcessesTestbed()
    assert testbed.where(job) == "2 devices (1 threads each; switch network, 1 ms a hop)"
    crowded = replace(job, threads_per_device=2)
    assert testbed.where(crowded) == (
        "2 devices (2 threads each, sharing cores; switch network, 1 ms a hop)"
    )
    assert testbed.where(replace(job, num_devices=1)) == "1 device (1 threads each; no network)"
    assert not testbed.machines(job).share_cores
    assert testbed.machines(crowded).share_cores
    assert testbed.machines(job).names == "this host"
    assert math.isnan(testbed.machines(job).cores_per_device)


def test_a_message_takes_what_is_emulated_or_was_measured(job: Job) -> None:
    testbed, trips_ns = ProcessesTestbed(), [50_000, 40_000]
    assert testbed.one_way_s(job, trips_ns) == 0.002
    assert testbed.one_way_s(replace(job, network=NetworkConfig()), trips_ns) == 20e-6
    assert testbed.one_way_s(replace(job, num_devices=1), []) == 0


def test_a_cap_is_free_but_for_what_a_device_starts_with() -> None:
    testbed = ProcessesTestbed()
    assert testbed.free_bytes((), None) is None
    free = testbed.free_bytes((), (1_000_000, 2_000_000_000))
    assert free is not None
    assert free[0] < 0  # it does not even start
    assert 1_000_000_000 < free[1] < 2_000_000_000
    assert free[1] - free[0] == 1_999_000_000
