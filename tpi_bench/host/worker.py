"""One process that answers many calls in their order: what it has loaded is there for the next.

`helper.py` asks one at a time of it, `workers.py` has several at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tpi_bench.host.fork import failure_of, fork_context, start_process

Kind = tuple[str, Any]  # of an answer, and its value, as `fork.result_of` takes them
IDLE_STATUS = 117  # with which one ends that nobody has asked for `idle_s`


class Worker:
    """Started when it is first asked, and again when it has ended.

    It ends by itself after `idle_s` without a call, so that nothing is left beside what is measured
    next, and with this process.
    """

    def __init__(self, name: str, idle_s: float = 5.0) -> None:
        self._name = name
        self._idle_s = idle_s
        self._process: BaseProcess | None = None
        self._jobs: Connection | None = None
        self._lifeline: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of its process, where there is one."""
        return None if self._process is None else self._process.pid

    @property
    def connection(self) -> Connection | None:
        """What is readable when it has answered or ended; None where there is no process."""
        return self._jobs

    def ask(self, fn: Callable[..., Any], *args: Any) -> None:
        """Hand over a call of a module-level function, pickled. Raises OSError where it has ended,
        InterpreterLost where it cannot be started.
        """
        if self._jobs is None:
            self._start()
        assert self._jobs is not None
        self._jobs.send((fn, args))

    @property
    def has_ended(self) -> bool:
        """Of one that has answered all calls: whether its process is there no more."""
        return self._jobs is not None and self._jobs.poll(0)

    def has_answered(self, timeout_s: float | None) -> bool:
        """Whether it answers, or ends, within that time."""
        assert self._jobs is not None
        return self._jobs.poll(timeout_s)

    def answer(self) -> Kind:
        """Of the oldest call without one. Raises EOFError or OSError where it has ended."""
        assert self._jobs is not None
        kind: Kind = self._jobs.recv()
        return kind

    def end(self) -> int | None:
        """End the process, if there is one; its exit status."""
        process, self._process = self._process, None
        for connection in (self._jobs, self._lifeline):
            if connection is not None:
                connection.close()
        self._jobs = self._lifeline = None
        if process is None:
            return None
        process.join(1.0)
        process.kill()
        process.join()
        return process.exitcode

    def _start(self) -> None:
        context = fork_context()
        jobs, theirs = context.Pipe()
        lifeline, end_of_line = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, end_of_line, self._idle_s), name=self._name, daemon=True
        )
        try:
            start_process(process)
        finally:
            theirs.close()
            end_of_line.close()
        self._process, self._jobs, self._lifeline = process, jobs, lifeline


def _serve(jobs: Connection, lifeline: Connection, idle_s: float) -> None:
    """In the process: answer calls until nobody asks any more."""
    threading.Thread(target=_end_with_the_launcher, args=(lifeline,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it holds nothing that must be tidied up
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `fork_context`
    try:
        while jobs.poll(idle_s):
            fn, args = jobs.recv()
            jobs.send(_answer(fn, args))
    except (EOFError, OSError):
        os._exit(1)
    sys.exit(IDLE_STATUS)


def _answer(fn: Callable[..., Any], args: tuple[Any, ...]) -> Kind:
    try:
        return "ok", fn(*args)
    except Exception as error:
        return failure_of(error)


def _end_with_the_launcher(lifeline: Connection) -> None:
    """Nothing is ever sent, so a read ends only when the launcher is gone, or wants it to end."""
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
