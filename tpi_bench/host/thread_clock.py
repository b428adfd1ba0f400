"""What a thread has had of the cores: time that it ran, and time that it was ready and did not."""

from __future__ import annotations

import os
import time
import weakref
from typing import NamedTuple

_SCHEDSTAT = "/proc/thread-self/schedstat"  # ns that it ran, ns that it waited, times


class ThreadTimes(NamedTuple):
    """Since the thread began. `core_wait_ns` is None where the system does not count it."""

    cpu_ns: int
    core_wait_ns: int | None

    def waited_since(self, before: ThreadTimes) -> int | None:
        if self.core_wait_ns is None or before.core_wait_ns is None:
            return None
        return self.core_wait_ns - before.core_wait_ns


class ThreadClock:
    """Of the thread that makes it, which alone may `look`. A look takes two or three microseconds.

    The kernel counts a wait when it ends, so that a thread that looks knows all of its own.
    """

    def __init__(self) -> None:
        try:
            self._file = os.open(_SCHEDSTAT, os.O_RDONLY)
        except OSError:  # not Linux, or a kernel without it
            self._file = -1
        else:
            weakref.finalize(self, os.close, self._file)

    def look(self) -> ThreadTimes:
        waited = None
        if self._file >= 0:
            waited = int(os.pread(self._file, 80, 0).split()[1])
        return ThreadTimes(time.thread_time_ns(), waited)
