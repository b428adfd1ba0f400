"""How the interpreter that processes are forked from ends: at once, and with its socket.

Nothing but an exit handler: the fork server imports it before all else (`fork.py`). It has heard
then that whoever could ask it for a process is gone. To take torch apart would keep a core busy for
half a second behind a command that has ended; and a launcher that is killed cannot remove the
folder of multiprocessing in which the socket is.
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
