"""One process for many calls, one at a time: what it has loaded is there for the next.

All modelled runs of a sweep share one: the first computation that is traced loads torch's machinery
for that, which takes longer than most simulations, and a modelled run leaves nothing behind that
the next could see. A conversation keeps its tokenizer in another.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tpi_bench.host.fork import HelperDied, failure_of, fork_context, result_of, start_process


class SharedHelper:
    """The process, started when it is first needed and again when it has ended.

    It ends by itself after `idle_s`, so that nothing is left beside what is measured next.
    """

    def __init__(self, idle_s: float = 5.0, name: str = "the process of modelled runs") -> None:
        self._idle_s = idle_s
        self._name = name
        self._process: BaseProcess | None = None
        self._jobs: Connection | None = None
        self._lifeline: Connection | None = None

    def call(self, fn: Callable[..., Any], *args: Any, timeout_s: float | None = None) -> Any:
        """The result of the module-level function `fn(*args)`, pickled.

        Raises what `fork.result_of` does, and TimeoutError when there is no result after
        `timeout_s`; the process then ends.
        """
        for is_last in (False, True):
            if self._jobs is None:
                self._start()
            try:
                kind, value = self._ask((fn, args), timeout_s)
            except (TimeoutError, KeyboardInterrupt):
                self.end()
                raise
            except (EOFError, OSError):  # it had just ended, or dies of this job
                status = self.end()
                if is_last:
                    raise HelperDied(f"{fn.__name__} ended with exit status {status}") from None
            else:
                break
        return result_of(fn, kind, value)

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        return None if self._process is None else self._process.pid

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
            target=_serve,
            args=(theirs, end_of_line, self._idle_s),
            name=self._name,
            daemon=True,
        )
        try:
            start_process(process)
        finally:
            theirs.close()
            end_of_line.close()
        self._process, self._jobs, self._lifeline = process, jobs, lifeline

    def _ask(self, job: Any, timeout_s: float | None) -> tuple[str, Any]:
        assert self._jobs is not None
        self._jobs.send(job)
        if not self._jobs.poll(timeout_s):
            raise TimeoutError
        return self._jobs.recv()


@functools.cache
def shared_helper() -> SharedHelper:
    """The one of this program's modelled runs."""
    return SharedHelper()


def _serve(jobs: Connection, lifeline: Connection, idle_s: float) -> None:
    """In the process: answer jobs until nobody asks any more."""
    threading.Thread(target=_end_with_the_launcher, args=(lifeline,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it holds nothing that must be tidied up
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `fork_context`
    try:
        while jobs.poll(idle_s):
            fn, args = jobs.recv()
            jobs.send(_answer(fn, args))
    except (EOFError, OSError):
        os._exit(1)


def _answer(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, Any]:
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
