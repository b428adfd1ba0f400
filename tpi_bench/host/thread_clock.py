"""What a thread has had of the cores: time that it ran, and time that it was ready and did not."""

from __future__ import annotations

import os
import time
import weakref

_SCHEDSTAT = "/proc/thread-self/schedstat"  # ns that it ran, ns that it waited, times
_NOTHING_NS = 5_000  # asleep for less: the call that asks takes as long


class ThreadClock:
    """Of the thread that makes it, which alone may ask."""

    def __init__(self) -> None:
        self._file = -1
        self._waited_ns = 0
        try:
            file = os.open(_SCHEDSTAT, os.O_RDONLY)
        except OSError:  # not Linux, or a kernel without it
            return
        weakref.finalize(self, os.close, file)
        if int(os.pread(file, 80, 0).split()[2]):  # this thread has run: 0 where nobody counts
            self._file = file
            self._waited_ns = self._counted_ns()

    def cpu_ns(self) -> int:
        """That it has run so far."""
        return time.thread_time_ns()

    def core_wait_ns(self, off_core_ns: int) -> int | None:
        """How much of a time off the cores, which has just ended, it was ready and had none.

        None where the system does not count that. Asking takes microseconds, so that it is left out
        where there is next to nothing to tell. What it waited between two times that were asked for
        counts in the second, which is never more than `off_core_ns`.
        """
        if self._file < 0:
            return None
        if off_core_ns < _NOTHING_NS:
            return 0
        before, self._waited_ns = self._waited_ns, self._counted_ns()
        return min(self._waited_ns - before, off_core_ns)

    def _counted_ns(self) -> int:
        """The kernel adds a wait when it ends, so all of them are in it."""
        return int(os.pread(self._file, 80, 0).split()[1])
