"""Devices that compute from one memory, against hand-made sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers.virtual import IDEAL, US, world_of
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.roofline import Operator, Work, work_ns
from tpi_bench.contract.runtime import Key
from tpi_bench.virtual.runtime import VirtualRuntime
from tpi_bench.virtual.world import Shared

READING: Work = (Operator(flops=0, nbytes=100 * US),)  # at a byte a ns, alone
MULTIPLYING: Work = (Operator(flops=100 * US, nbytes=0),)
ONE = replace(IDEAL, memory_gb_per_s=1.0, peak_gflops=1.0)


class Charged:
    """Costs of what a profile takes alone; the key has the operators."""

    def run(self, key: Key, fn: Callable[[], Any], profile: DeviceProfile, idle_ns: int = 0) -> Any:
        return fn(), work_ns(profile, self.work(key))

    def work(self, key: Key) -> Work:
        return key[1]  # type: ignore[return-value]


def ends(shared_gb_per_s: float | None, *devices: tuple[int, Work], shares: bool = True) -> list:
    """When devices that begin at such times have done such work, in microseconds."""
    profile = replace(ONE, memory_shared_gb_per_s=shared_gb_per_s)
    world = world_of(*[profile] * len(devices), costs=Charged(), shared=Shared(memory=shares))

    def program(rt: VirtualRuntime) -> float:
        begin_us, work = devices[rt.rank]
        rt.sleep(begin_us * US)
        rt.compute(("work", work), lambda: None)
        return rt.now() / US

    return world.run(program)


def test_two_that_read_at_once_get_half_each() -> None:
    assert ends(1.0, (0, READING), (0, READING)) == [200, 200]


def test_only_while_both_compute() -> None:
    """The first has half of its bytes when the other begins, and the other half when it ends."""
    assert ends(1.0, (0, READING), (50, READING)) == [150, 200]


def test_who_comes_later_slows_down_two_that_compute() -> None:
    """At 60 each of two has 30 of its 100 bytes; of three each gets a third."""
    found = ends(1.0, (0, READING), (0, READING), (60, READING))
    assert found == [270, 270, 300]


@pytest.mark.parametrize(
    ("shared_gb_per_s", "expected"), [(1.6, 125), (2.0, 100), (4.0, 100), (None, 100)]
)
def test_a_memory_may_have_more_than_one_takes(
    shared_gb_per_s: float | None, expected: float
) -> None:
    assert ends(shared_gb_per_s, (0, READING), (0, READING)) == [expected, expected]


def test_arithmetic_takes_what_it_takes_and_counts_as_one_that_computes() -> None:
    assert ends(1.0, (0, MULTIPLYING), (0, READING)) == [100, 150]


def test_devices_with_memories_of_their_own_know_nothing_of_each_other() -> None:
    assert ends(1.0, (0, READING), (0, READING), shares=False) == [100, 100]


def test_a_computation_of_no_time_ends_at_once() -> None:
    assert ends(1.0, (5, ()), (0, READING)) == [5, 100]


def test_what_is_copied_takes_sender_and_receiver_time() -> None:
    """3,000 bytes at 1 a ns to send and at 2 to receive; both have 5 us besides."""
    profile = replace(IDEAL, message_overhead_us=5, message_gb_per_s=1.0, receive_gb_per_s=2.0)
    world = world_of(profile, profile)

    def program(rt: VirtualRuntime) -> float:
        buffer = torch.zeros(3000, dtype=torch.uint8)
        if rt.rank == 0:
            rt.send(1, buffer)
        else:
            rt.recv(0, buffer)
        return rt.now() / US

    assert world.run(program) == [8, 8 + 6.5]


@pytest.mark.parametrize("name", ["memory_shared_gb_per_s", "message_gb_per_s", "receive_gb_per_s"])
def test_a_rate_of_nothing_is_one_line(name: str) -> None:
    line = rf"device\.{IDEAL.name}\.{name}=-1 must be above 0, or null"
    with pytest.raises(ValueError, match=line):
        replace(IDEAL, **{name: -1})
