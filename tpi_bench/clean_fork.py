"""The clean interpreter that devices and helpers are forked from; torch is loaded there once."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker


def fork_context() -> multiprocessing.context.ForkServerContext:
    """The fork server's context; its interpreter loads torch and the engine once.

    It is started with SIGINT blocked, and so are its children until they unblock it: Ctrl-C goes to
    the whole process group, and while they start they could only die of it with a traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tpi_bench.device"])
    resource_tracker.ensure_running()  # its start unblocks SIGINT
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context
