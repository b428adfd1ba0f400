"""A core for each thread, where a device has as many as cores; not where the kernel may choose."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK = """
import os, torch
from pathlib import Path
from tpi_bench.processes.binding import bind_threads
cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
torch.set_num_threads({threads})
print(bind_threads({threads}))
torch.ones(1 << 20).sum()
found = {{}}
for task in Path("/proc/self/task").iterdir():
    found[task.name] = sorted(os.sched_getaffinity(int(task.name)))
print(*(sum(own == [core] for own in found.values()) for core in cores))
print(sorted(os.sched_getaffinity(0)) == cores)
"""


def asked(threads: int) -> list[str]:
    command = [sys.executable, "-c", ASK.format(threads=threads)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores that processes can be bound to",
)
def test_two_threads_of_two_cores_have_one_each() -> None:
    said = asked(2)
    assert said[0] == "True"
    on_first, on_second = map(int, said[1].split())
    assert on_first >= 1
    assert on_second >= 1


@pytest.mark.parametrize("threads", [1, 3])
def test_others_are_left_alone(threads: int) -> None:
    said = asked(threads)
    assert said[0] == "False"
    assert said[2] == "True"
