"""Hang diagnosis as arithmetic: what devices have answered, and when. No process, no clock."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers.processes import LONG
from tests.helpers.running import make_job
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.processes.control import Status
from tpi_bench.processes.watch import Watch

BUSY = Status(waiting_for=None, is_computing=True, num_steps=1)
STUCK = Status(waiting_for=None, is_computing=False, num_steps=1)
WAITING = Status(waiting_for=1, is_computing=False, num_steps=1)


@pytest.fixture
def watch(checkpoints: dict[str, Path], cache_dir: Path) -> Watch:
    """Over two devices that have begun at 100 s, with 1 s of patience, until 130 s."""
    network = NetworkConfig(timeout_s=1.0)
    job = make_job(
        TpiSystem(),
        checkpoints["gqa"],
        cache_dir,
        num_devices=2,
        request=LONG,
        network=network,
        timeout_s=30.0,
    )
    watch = Watch(job, 100.0)
    assert watch.due_in_s(100.0) == 30.0
    assert not watch.is_time_to_ask(129.0)
    assert watch.doing(0) == "starting"
    watch.begin(100.0)
    return watch


def test_devices_are_asked_four_times_within_the_time_out(watch: Watch) -> None:
    assert watch.due_in_s(100.1) == pytest.approx(0.15)
    assert not watch.is_time_to_ask(100.2)
    assert watch.is_time_to_ask(100.26)
    assert not watch.is_time_to_ask(100.5)
    assert watch.due_in_s(100.26) == pytest.approx(0.25)
    assert watch.due_in_s(math.inf) == 0.0


def test_who_does_not_answer_hangs(watch: Watch) -> None:
    watch.note(0, BUSY, 101.0)
    assert watch.hangs([0, 1], 101.0) == {}
    silent = "hangs: it has not answered for 1 s (network.timeout_s)"
    assert watch.hangs([0, 1], 101.1) == {1: silent}
    assert watch.hangs([0], 101.1) == {}


def test_who_answers_and_gets_nowhere_hangs(watch: Watch) -> None:
    for now_s in (100.5, 101.0, 101.6):
        watch.note(0, BUSY, now_s)
        watch.note(1, STUCK, now_s)
    stuck = "hangs: it has made no progress for 1 s (network.timeout_s)"
    assert watch.hangs([0, 1], 101.6) == {1: stuck}
    watch.note(1, Status(waiting_for=None, is_computing=False, num_steps=2), 101.6)
    assert watch.hangs([0, 1], 101.6) == {}


def test_who_waits_is_not_to_blame_unless_all_do(watch: Watch) -> None:
    for step in range(1, 30):
        watch.note(0, WAITING, 100.0 + step / 10)
        watch.note(1, BUSY, 100.0 + step / 10)
    assert watch.hangs([0, 1], 102.9) == {}
    for step in range(30, 60):
        watch.note(0, WAITING, 100.0 + step / 10)
        watch.note(1, WAITING, 100.0 + step / 10)
    all_wait = "hangs: all devices have waited for 2 s (twice network.timeout_s)"
    assert watch.hangs([0, 1], 105.9) == {0: all_wait}


def test_a_late_device_says_what_it_is_at(watch: Watch) -> None:
    assert not watch.is_late(129.9)
    assert watch.is_late(130.0)
    watch.note(0, WAITING, 129.9)
    watch.forget(0)
    assert not watch.has_answered(0)
    assert watch.doing(0) == "running"
    for status, doing in ((BUSY, "computing"), (STUCK, "running"), (WAITING, "waiting for rank 1")):
        watch.note(0, status, 130.0)
        assert watch.has_answered(0)
        assert watch.doing(0) == doing
