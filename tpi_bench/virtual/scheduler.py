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
        self._events: list[tuple[int, int, int, Callable[[], object]]] = []
        self._hub = greenlet.getcurrent()

    def at(self, time_ns: int, action: Callable[[], object], planned_ns: int | None = None) -> None:
        """Plan `action` for a time that is not past. Whoever is ahead of time says by `planned_ns`
        when it is planned, if not now.
        """
        self._sequence += 1
        since_ns = self.now_ns if planned_ns is None else planned_ns
        heappush(self._events, (time_ns, since_ns, self._sequence, action))

    def sleep_until(self, time_ns: int) -> None:
        """Let everything happen that comes before that time. Called by a greenlet."""
        if time_ns <= self.now_ns:
            return
        if self._events and self._events[0][0] <= time_ns:
            self.at(time_ns, greenlet.getcurrent().switch, time_ns)
            self._hub.switch()
        else:  # nothing comes before: no need to switch there and back
            self.now_ns = time_ns

    def wait(self) -> None:
        """Give up the turn until an event resumes this greenlet."""
        self._hub.switch()

    @property
    def num_events(self) -> int:
        """What was planned and has happened."""
        return self._sequence - len(self._events)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is planned."""
        return not self._events

    def run(self) -> None:
        """Until nothing is planned any more."""
        events = self._events
        while events:
            self.now_ns, _, _, action = heappop(events)
            action()
