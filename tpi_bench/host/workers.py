"""Several processes that share a stream of calls. Answers come in the order of the calls.

A call waits with each worker while it is busy, so that it never waits for the caller. A worker that
dies costs the call that it was busy with, and is replaced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from tpi_bench.host.fork import HelperDied, InterpreterLost, ended, result_of
from tpi_bench.host.worker import IDLE_STATUS, Worker

_IN_HAND = 2  # calls of a worker: the one that it is busy with, and the next
_AHEAD = 8  # calls of each that may be answered before an earlier one is


@dataclass(frozen=True)
class Answer:
    """What a call has come to: `value`, or the `error` that its result raises."""

    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class _Call:
    place: int
    args: tuple[Any, ...]


@dataclass
class _Hand:
    """A worker, and the calls that it has, in their order."""

    worker: Worker
    calls: deque[_Call] = field(default_factory=deque)


class Workers:
    """Processes are started as there are calls for them. `end` them, also in the middle."""

    def __init__(self, num_workers: int, name: str) -> None:
        self._num_workers = num_workers
        self._hands = [_Hand(Worker(name)) for _ in range(num_workers)]

    def answers(self, fn: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Answer]:
        """Of the module-level `fn(*args)` for each args of `calls`, which are asked for as workers
        become free.
        """
        left = _Left(calls)
        found: dict[int, Answer] = {}
        place = 0  # of the answer that is next
        try:
            while True:
                self._hand_out(fn, left, found, place + _AHEAD * self._num_workers)
                if place in found:
                    yield found.pop(place)
                    place += 1
                elif any(hand.calls for hand in self._hands):
                    self._listen(fn, left, found)
                else:
                    return
        finally:
            if any(hand.calls for hand in self._hands):  # nobody wants them any more
                self.end()

    def end(self) -> None:
        """End all processes."""
        for hand in self._hands:
            hand.calls.clear()
            hand.worker.end()

    def _hand_out(
        self, fn: Callable[..., Any], left: _Left, found: dict[int, Answer], before: int
    ) -> None:
        """Calls before a place, to those who have the fewest."""
        while True:
            hand = min(self._hands, key=lambda hand: len(hand.calls))
            if len(hand.calls) >= _IN_HAND or left.place >= before:
                return
            if not hand.calls and hand.worker.has_ended:
                hand.worker.end()
            call = left.take()
            if call is None:
                return
            try:
                hand.worker.ask(fn, *call.args)
            except InterpreterLost as error:
                found[call.place] = Answer(error=error)
            except OSError:  # it has ended
                left.give_back([call])
                self._bury(fn, hand, left, found)
            else:
                hand.calls.append(call)

    def _listen(self, fn: Callable[..., Any], left: _Left, found: dict[int, Answer]) -> None:
        """Wait for somebody's answer, and take all that are there."""
        busy = {hand.worker.connection: hand for hand in self._hands if hand.calls}
        for ready in wait([connection for connection in busy if connection is not None]):
            assert isinstance(ready, Connection)
            hand = busy[ready]
            try:
                kind, value = hand.worker.answer()
            except (EOFError, OSError):
                self._bury(fn, hand, left, found)
                continue
            call = hand.calls.popleft()
            try:
                found[call.place] = Answer(result_of(fn, kind, value))
            except (ValueError, HelperDied) as error:
                found[call.place] = Answer(error=error)

    def _bury(
        self, fn: Callable[..., Any], hand: _Hand, left: _Left, found: dict[int, Answer]
    ) -> None:
        """Of a worker that has ended; what it had not begun is for others."""
        status = hand.worker.end()
        if hand.calls and status != IDLE_STATUS:
            victim = hand.calls.popleft()
            found[victim.place] = Answer(error=ended(fn, status))
        left.give_back(hand.calls)
        hand.calls.clear()


class _Left:
    """Calls that nobody has yet."""

    def __init__(self, calls: Iterable[tuple[Any, ...]]) -> None:
        self._calls = iter(calls)
        self._again: deque[_Call] = deque()
        self._num_taken = 0

    @property
    def place(self) -> int:
        """Of the next one."""
        return self._again[0].place if self._again else self._num_taken

    def take(self) -> _Call | None:
        """The next one; None where there is none."""
        if self._again:
            return self._again.popleft()
        args = next(self._calls, None)
        if args is None:
            return None
        self._num_taken += 1
        return _Call(self._num_taken - 1, args)

    def give_back(self, calls: Iterable[_Call]) -> None:
        """They come before all others."""
        self._again = deque(sorted([*calls, *self._again], key=lambda call: call.place))
