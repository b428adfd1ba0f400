"""A core for each of two threads, where a device has two cores; not where the kernel may choose."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK = """
import os, sys, threading, torch
from pathlib import Path
from tpi_bench.host.cores import on_any_core
from tpi_bench.processes import binding
threads, with_openmp = int(sys.argv[1]), sys.argv[2] == "True"
cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
torch.set_num_threads(threads)
if not with_openmp:
    binding.in_parallel = lambda: lambda *_: None
free = on_any_core()
print(binding.bind_threads(threads))
torch.ones(1 << 20).sum()
found = [os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()]
print(*(found.count({core}) for core in cores))
print(os.sched_getaffinity(0) == set(cores))
helper = threading.Thread(target=lambda: (free(), print(os.sched_getaffinity(0) == set(cores))))
helper.start()
helper.join()
"""
TWO_CORES = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores that processes can be bound to",
)


def asked(threads: int, with_openmp: bool = True) -> list[str]:
    command = [sys.executable, "-c", ASK, str(threads), str(with_openmp)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")


@TWO_CORES
def test_two_threads_of_two_cores_have_one_each() -> None:
    """And what helps them beside may use both."""
    bound, counts, _, helper_is_free, *_ = asked(2)
    assert bound == "True"
    on_first, on_second = map(int, counts.split())
    assert on_first >= 1
    assert on_second >= 1
    assert helper_is_free == "True"


@TWO_CORES
@pytest.mark.parametrize(("threads", "with_openmp"), [(1, True), (3, True), (2, False)])
def test_others_are_left_alone(threads: int, with_openmp: bool) -> None:
    bound, _, all_are_free, *_ = asked(threads, with_openmp)
    assert bound == "False"
    assert all_are_free == "True"
