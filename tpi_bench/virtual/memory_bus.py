"""One memory for several virtual devices, as processes of one host have it.

Together they get no more bytes a second out of it than it gives, so computations that read weights
take longer beside each other. How many compute at once changes at any time: a computation's end is
known when it has come.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from greenlet import greenlet

from tpi_bench.virtual.scheduler import Scheduler

_ROUNDING_NS = 0.5


@dataclass(eq=False)
class _Computing:
    """A device's computation: what is left of it, in ns that it would take alone."""

    device: greenlet
    left_ns: float
    stretch: Callable[[int], float]


class MemoryBus:
    """Of the devices whose computations pass it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._computing: list[_Computing] = []
        self._until_ns = 0  # what has passed of them is accounted for
        self._plan = 0  # the number of the last: earlier ones no longer hold

    def compute(self, ns: int, stretch: Callable[[int], float]) -> None:
        """Let a computation pass that alone would take `ns`. Called by a device's greenlet.

        It takes `stretch(n)` times as long while n devices compute, itself among them.
        """
        if ns <= 0:
            return
        self._account()
        self._computing.append(_Computing(greenlet.getcurrent(), ns, stretch))
        self._replan()
        self._scheduler.wait()

    def _account(self) -> None:
        passed_ns = self._scheduler.now_ns - self._until_ns
        for each in self._computing:
            each.left_ns -= passed_ns / each.stretch(len(self._computing))
        self._until_ns = self._scheduler.now_ns

    def _replan(self) -> None:
        """The next end, if nobody begins before."""
        self._plan += 1
        if self._computing:
            number = len(self._computing)
            next_ns = min(each.left_ns * each.stretch(number) for each in self._computing)
            end = functools.partial(self._end, self._plan)
            self._scheduler.at(self._scheduler.now_ns + max(0, math.ceil(round(next_ns, 3))), end)

    def _end(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._account()
        ended = [each for each in self._computing if each.left_ns <= _ROUNDING_NS]
        self._computing = [each for each in self._computing if each.left_ns > _ROUNDING_NS]
        self._replan()
        for each in ended:
            self._scheduler.at(self._scheduler.now_ns, each.device.switch)
