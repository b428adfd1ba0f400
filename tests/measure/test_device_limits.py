"""Limits of devices that are machines of their own: each with its rates, the slowest for all."""

from __future__ import annotations

import math

import pytest

from tpi_bench.contract.testbed import Rates
from tpi_bench.measure.limits import TokenBytes, own_times
from tpi_bench.measure.probe import HostLimits

FAST = HostLimits(memory_bps=20e9, disk_bps=2e9, spread=0.1, busy_cores=0.0)
SLOW = HostLimits(memory_bps=5e9, disk_bps=math.nan, spread=0.2, busy_cores=1.0)


def test_the_slowest_stands_for_all() -> None:
    both = HostLimits.of_devices([SLOW, FAST])
    assert (both.memory_bps, both.spread, both.busy_cores) == (5e9, 0.2, 1.0)
    assert both.by_device == (SLOW, FAST)
    better = HostLimits.of_devices([FAST, FAST])
    best = both.best(better)
    assert [each.memory_bps for each in best.by_device] == [20e9, 20e9]
    assert best.busy_cores == 0.0


def test_a_disk_that_nobody_reads_costs_nothing() -> None:
    sizes = [TokenBytes(layers=10**9, head=0, streamed=0)] * 2
    rates = Rates(memory_bps=(5e9, 20e9), disk_bps=(math.nan, math.nan))
    times = own_times(sizes, rates, teams=[[0, 1]])
    assert times.memory_s == pytest.approx(0.2)
    assert times.disk_s == 0
