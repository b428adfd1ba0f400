"""One process for many calls, one at a time.

Modelled runs share one: the first computation that is traced loads torch's machinery for that,
which takes longer than most simulations, and a modelled run leaves nothing behind that the next
could see. A conversation keeps its tokenizer in another.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from tpi_bench.host.fork import called_here, ended, result_of
from tpi_bench.host.worker import Worker


class SharedHelper:
    """The process, started when it is first needed and again when it has ended."""

    def __init__(self, idle_s: float = 5.0, name: str = "the process of modelled runs") -> None:
        self._worker = Worker(name, idle_s)

    def call(self, fn: Callable[..., Any], *args: Any, timeout_s: float | None = None) -> Any:
        """The result of the module-level function `fn(*args)`, pickled.

        Raises what `fork.result_of` does, and TimeoutError when there is no result after
        `timeout_s`; the process then ends.
        """
        for is_last in (False, True):
            try:
                self._worker.ask(fn, *args)
                if not self._worker.has_answered(timeout_s):
                    raise TimeoutError
                kind, value = self._worker.answer()
            except (TimeoutError, KeyboardInterrupt):
                self.end()
                raise
            except (EOFError, OSError):  # it had just ended, or dies of this call
                status = self.end()
                if is_last:
                    raise ended(fn, status) from None
            else:
                break
        return result_of(fn, kind, value)

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        return self._worker.pid

    def end(self) -> int | None:
        """End the process, if there is one; its exit status."""
        return self._worker.end()


@functools.cache
def shared_helper() -> SharedHelper:
    """The one of this program's modelled runs."""
    return SharedHelper()


def in_place(fn: Callable[..., Any], *args: Any, timeout_s: float | None = None) -> Any:
    """As `SharedHelper.call`, in this process, which is a worker itself; from its main thread."""
    with _at_most(timeout_s):
        return called_here(fn, *args)


class _TooLate(BaseException):
    """No Exception, which the function may catch."""


@contextlib.contextmanager
def _at_most(timeout_s: float | None) -> Iterator[None]:
    """Raises TimeoutError in the middle of what lasts longer."""
    if timeout_s is None:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooLate

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
    except _TooLate:
        raise TimeoutError from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
