"""What a thread had of the cores: running, ready without one, and asleep."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tpi_bench.host import thread_clock
from tpi_bench.host.thread_clock import ThreadClock

TWO_ON_ONE_CORE = """
import os, time
from tpi_bench.host.thread_clock import ThreadClock
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
child = os.fork()
clock, until = ThreadClock(), time.monotonic() + 0.6
before = clock.look()
while time.monotonic() < until:
    pass
after = clock.look()
if not child:
    os._exit(0)
os.waitpid(child, 0)
print((after.cpu_ns - before.cpu_ns) / 1e9, after.waited_since(before) / 1e9)
"""


def test_asleep_is_neither() -> None:
    clock = ThreadClock()
    before = clock.look()
    time.sleep(0.1)
    after = clock.look()
    assert after.cpu_ns - before.cpu_ns < 50e6
    waited = after.waited_since(before)
    assert waited is None or waited < 50e6  # others may have the core when it wakes


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the kernel counts no waits")
def test_who_shares_a_core_waits_for_it() -> None:
    command = [sys.executable, "-c", TWO_ON_ONE_CORE]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ran, waited = map(float, said.split())
    assert ran + waited == pytest.approx(0.6, abs=0.1)
    assert waited > 0.15


def test_where_nobody_counts_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_clock, "_SCHEDSTAT", "/proc/nothing")
    clock = ThreadClock()
    assert clock.look().core_wait_ns is None
    assert clock.look().waited_since(clock.look()) is None
