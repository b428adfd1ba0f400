"""What a thread had of the cores: running, ready without one, and asleep."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tpi_bench.host import thread_clock
from tpi_bench.host.thread_clock import ThreadClock

IS_COUNTED = ThreadClock().core_wait_ns(10**9) is not None
TWO_ON_ONE_CORE = """
import os, time
from tpi_bench.host.thread_clock import ThreadClock
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
child = os.fork()
clock, start = ThreadClock(), time.monotonic_ns()
before = clock.cpu_ns()
clock.core_wait_ns(10**9)
while time.monotonic_ns() < start + 600_000_000:
    pass
ran = clock.cpu_ns() - before
waited = clock.core_wait_ns(time.monotonic_ns() - start - ran)
if not child:
    os._exit(0)
os.waitpid(child, 0)
print(ran / 1e9, waited / 1e9)
"""


def test_asleep_is_neither() -> None:
    clock = ThreadClock()
    before = clock.cpu_ns()
    clock.core_wait_ns(10**9)
    time.sleep(0.1)
    assert clock.cpu_ns() - before < 50e6
    waited = clock.core_wait_ns(100_000_000)
    assert waited is None or waited < 50e6  # others may have the core when it wakes


@pytest.mark.skipif(not IS_COUNTED, reason="the kernel counts no waits")
def test_who_shares_a_core_waits_for_it() -> None:
    command = [sys.executable, "-c", TWO_ON_ONE_CORE]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ran, waited = map(float, said.split())
    assert ran + waited == pytest.approx(0.6, abs=0.1)
    assert waited > 0.15


@pytest.mark.skipif(not IS_COUNTED, reason="the kernel counts no waits")
def test_no_more_than_it_was_off_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([7_000_000, 14_000_000, 14_500_000])
    monkeypatch.setattr(ThreadClock, "_counted_ns", lambda _: next(counted))
    clock = ThreadClock()
    assert clock.core_wait_ns(1_000) == 0  # not even asked
    assert clock.core_wait_ns(2_000_000) == 2_000_000
    assert clock.core_wait_ns(2_000_000) == 500_000


def test_where_nobody_counts_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_clock, "_SCHEDSTAT", "/proc/nothing")
    assert ThreadClock().core_wait_ns(10**9) is None
