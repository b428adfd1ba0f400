"""How the interpreter that processes are forked from ends where its launcher was killed.

A launcher that ends by itself ends it (`fork.py`), and removes the folder of multiprocessing in
which their socket is. Else it hears that nobody is left who could ask it for a process, does that
in its place, and ends at once: to take torch apart takes a while. Nothing but an exit handler,
which the fork server imports before all else.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from multiprocessing import forkserver
from pathlib import Path

_GOING_S = 0.5  # that a process may take to end once its files are closed


def _end(server: int, launcher: int) -> None:
    address = vars(forkserver._forkserver).get("_forkserver_address")
    if os.getpid() != server or _is_client() or not isinstance(address, str):
        return
    deadline_s = time.monotonic() + _GOING_S
    while os.getppid() == launcher and time.monotonic() < deadline_s:
        time.sleep(0.001)
    if os.getppid() != launcher:
        with contextlib.suppress(OSError):  # the launcher itself has removed it, as it does
            Path(address).unlink(missing_ok=True)
            Path(address).parent.rmdir()
    os._exit(0)


def _is_client() -> bool:
    """Whether this is no fork server, but has one."""
    return vars(forkserver._forkserver).get("_forkserver_pid") is not None


atexit.register(_end, os.getpid(), os.getppid())
