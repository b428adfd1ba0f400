"""Jobs that last, and their device processes: how long they take, one disturbed, none left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection

import psutil

from tests.helpers.models_zoo import prompt_of
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.request import Request
from tpi_bench.host.fork import in_helper
from tpi_bench.host.helper import shared_helper
from tpi_bench.processes.launcher import run_job

LONG = Request(prompt_ids=prompt_of(5), num_new_tokens=400)


def timed(job: Job) -> tuple[Outcome, float]:
    """What became of it, and how long it took, once there is an interpreter to fork from."""
    in_helper(os.getpid)
    start = time.monotonic()
    outcome = run_job(job)
    return outcome, time.monotonic() - start


def child_pids() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def no_children_left(before: Collection[int] = ()) -> bool:
    """Only fork servers, the resource tracker and the process of modelled runs may be there.

    And those of `before`, which other tests have started.
    """
    return not [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and child.pid != shared_helper().pid
        if child.pid not in before and not _forks_or_tracks(child)
    ]


def _forks_or_tracks(child: psutil.Process) -> bool:
    """What it forks has its command line, but is no child of this process."""
    said = " ".join(child.cmdline())
    is_server = "multiprocessing.forkserver" in said and child.ppid() == os.getpid()
    return is_server or "resource_tracker" in said


def _num_connections(process: psutil.Process) -> int:
    """0 of one that has just ended."""
    try:
        return len(process.net_connections(kind="tcp"))
    except psutil.NoSuchProcess:
        return 0


def signal_later(number: int) -> threading.Thread:
    """Send `number` to the device process with rank 1 once it is generating."""

    def work() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            children = psutil.Process().children(recursive=True)
            connected = [child for child in children if _num_connections(child) == 2]
            if len(connected) >= 3:  # every device of three is connected to two others
                time.sleep(0.3)
                os.kill(sorted(child.pid for child in connected)[1], number)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    return thread
