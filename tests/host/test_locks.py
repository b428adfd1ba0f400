"""Locks between processes: named holders, given back by the kernel, taken in turns."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT
from tpi_bench.host.locks import Lock, Occupied, turn


def python(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


HOLD = """
import sys, pathlib
from tpi_bench.host.locks import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
assert lock.take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    process = python(HOLD, tmp_path / "now.lock")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_holder_is_named_until_it_dies(tmp_path: Path, holder: subprocess.Popen) -> None:
    lock = Lock(tmp_path / "now.lock")
    assert not lock.take()
    assert lock.holder.startswith(f"process {holder.pid} ({sys.executable} -c ")
    assert ", since 20" in lock.holder
    holder.kill()
    holder.wait()
    assert lock.holder == "another process"  # its note is still there, and it is not
    assert lock.take()
    lock.give_back()
    lock.give_back()


def test_who_does_not_wait_is_told_who_is_there(tmp_path: Path, holder: subprocess.Popen) -> None:
    with pytest.raises(Occupied, match=f"process {holder.pid} "), turn(tmp_path, print, 0.0):
        pass


def test_seconds_count_for_the_whole_line(tmp_path: Path, holder: subprocess.Popen) -> None:
    """Who is second in line waits no longer than who is first, and leaves it."""
    second = python(HOLD, tmp_path / "next.lock")
    assert second.stdout is not None
    assert second.stdout.readline() == "held\n"
    told: list[str] = []
    begun = time.monotonic()
    threading.Timer(0.3, second.kill).start()
    with pytest.raises(Occupied, match=f"process {holder.pid} "), turn(tmp_path, told.append, 0.6):
        pass
    assert 0.6 <= time.monotonic() - begun < 0.85
    second.communicate()
    assert len(told) == 1
    holder.kill()
    holder.wait()
    with turn(tmp_path, told.append, 0.0):
        assert len(told) == 1


def test_who_waits_is_told_once_and_comes_next(tmp_path: Path, holder: subprocess.Popen) -> None:
    told: list[str] = []

    def on_wait(words: str) -> None:
        told.append(words)
        holder.kill()

    with turn(tmp_path, on_wait):
        pass
    assert len(told) == 1
    assert f"process {holder.pid} " in told[0]


TURNS = """
import sys, pathlib, time
from tpi_bench.host.locks import turn
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    with turn(pathlib.Path(sys.argv[1]), lambda words: None):
        with open(sys.argv[2], "a") as log:
            log.write(sys.argv[3])
        time.sleep(0.3)
"""


def test_a_holder_that_comes_again_at_once_lets_another_go_first(tmp_path: Path) -> None:
    """As two sweeps side by side: neither waits for the other's end."""
    log = tmp_path / "log"
    both = [python(TURNS, tmp_path, log, name) for name in "ab"]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=30)
        assert process.returncode == 0
    order = log.read_text()
    assert sorted(order) == list("aaabbb")
    assert order in ("ababab", "bababa")
