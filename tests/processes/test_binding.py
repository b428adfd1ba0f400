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
cores = sorted(os.sched_getaffinity(0))[:2]

def ask(threads, with_openmp):
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    if not with_openmp:
        binding.in_parallel = lambda: lambda *_: None
    free = on_any_core()
    print(threads, with_openmp, binding.bind_threads(threads), end=" ")
    torch.ones(1 << 20).sum()
    found = [os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()]
    print(*(found.count({core}) for core in cores), end=" ")
    print(os.sched_getaffinity(0) == set(cores), end=" ")
    helper = threading.Thread(
        target=lambda: (free(), print(os.sched_getaffinity(0) == set(cores), flush=True))
    )
    helper.start()
    helper.join()

for case in [(1, True), (2, True), (3, True), (2, False)]:
    pid = os.fork()  # before torch has threads
    if pid == 0:
        ask(*case)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""
TWO_CORES = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores that processes can be bound to",
)


@TWO_CORES
def test_two_threads_of_two_cores_have_one_each_and_others_are_left_alone() -> None:
    """What helps the two beside may use both; others: another number, or no OpenMP."""
    command = [sys.executable, "-c", ASK]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cases = {tuple(words[:2]): words[2:] for words in map(str.split, out.splitlines())}
    assert len(cases) == 4
    bound, on_first, on_second, _, helper_is_free = cases.pop(("2", "True"))
    assert bound == "True"
    assert int(on_first) >= 1
    assert int(on_second) >= 1
    assert helper_is_free == "True"
    for case, (bound, _, _, all_are_free, _) in cases.items():
        assert (bound, all_are_free) == ("False", "True"), case
