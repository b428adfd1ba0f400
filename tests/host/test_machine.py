"""How busy others keep this host: what this process does itself does not count."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tpi_bench.host import machine
from tpi_bench.host.machine import OthersLoad, busy_cores


def test_others_are_told_from_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 2 s: all cores worked 3 s, of which 1.2 s were this process's."""
    clocks = {"_busy_s": [100.0, 103.0]}
    monkeypatch.setattr(machine, "_busy_s", lambda: clocks["_busy_s"].pop(0))
    times = iter([10.0, 12.0])
    own = iter([5.0, 6.2])
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(machine.time, "process_time", lambda: next(own))
    assert OthersLoad().cores() == pytest.approx(0.9)


def test_waiting_for_a_disk_is_not_busy_and_a_deprived_guest_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = psutil.cpu_times()
    given = dict.fromkeys(times._fields, 0.0) | {"user": 2.0, "idle": 9.0, "iowait": 4.0}
    given |= {"steal": 1.0, "guest": 0.5}  # a guest's time is part of the user's
    named = type(times)(**{name: given[name] for name in times._fields})
    monkeypatch.setattr(psutil, "cpu_times", lambda: named)
    assert machine._busy_s() == pytest.approx(3.0)


def test_a_process_that_works_is_seen() -> None:
    busy = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=-1
    )
    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        assert busy_cores(0.3) > 0.3
    finally:
        busy.kill()
        busy.communicate()
