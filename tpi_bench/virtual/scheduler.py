"""Virtual time: what is planned happens in order, and greenlets wait for it.

Events at one time happen in the order in which they were planned. `runtime.py` runs ranks on it,
`network.py` moves messages by its clock; it knows nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from greenlet import greenlet


class Deadlock(RuntimeError):
    """Nobody can go on; the message says who waits for whom."""


class Scheduler:
    """Used from one thread; `run` is the hub that all greenlets return to."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._sequence = 0  # of the event that was planned last
        self._num_unplanned = 0
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._hub = greenlet.getcurrent()

    def at(self, time_ns: int, action: Callable[[], object]) -> None:
        """Plan `action` for a time that is not past."""
        self._sequence += 1
        heappush(self._events, (time_ns, self._sequence, action))

    def sleep(self, ns: int) -> None:
        """Let everything happen that comes before that has passed. Called by a greenlet."""
        if ns <= 0:
            return
        time_ns = self.now_ns + ns
        if self._events and self._events[0][0] <= time_ns:
            self.at(time_ns, greenlet.getcurrent().switch)
            self._hub.switch()
        else:  # nothing comes before: no need to switch there and back
            self.now_ns = time_ns
            self._num_unplanned += 1

    def wait(self) -> None:
        """Give up the turn until an event resumes this greenlet."""
        self._hub.switch()

    @property
    def num_events(self) -> int:
        """What has happened so far."""
        return self._sequence - len(self._events) + self._num_unplanned

    @property
    def is_idle(self) -> bool:
        """Whether nothing is planned."""
        return not self._events

    def run(self) -> None:
        """Until nothing is planned any more."""
        events = self._events
        while events:
            self.now_ns, _, action = heappop(events)
            action()
