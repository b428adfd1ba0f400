"""Reads of one disk by several virtual devices, as processes of one host have it.

What the disk gives changes whenever one of them begins or ends to compute or to read, so a wait for
a read may be over sooner or later than was expected when it began.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from greenlet import greenlet

from tpi_bench.virtual.disk import DiskQueue, DiskRead
from tpi_bench.virtual.scheduler import Scheduler


@dataclass(eq=False)
class _Waiting:
    """A device that waits for a read, which is expected to end then; -1: it no longer waits."""

    device: greenlet
    read: DiskRead
    end_ns: int = -1


class SharedReads:
    """Of a disk that devices read whose time is the world's."""

    def __init__(self, scheduler: Scheduler, disk: DiskQueue) -> None:
        self._scheduler = scheduler
        self._disk = disk
        self._waiting: list[_Waiting] = []

    def wait(self, read: DiskRead) -> None:
        """Until its last byte is there. Called by a device's greenlet."""
        self._disk.advance(self._scheduler.now_ns)
        if read.end_ns is None:
            waiting = _Waiting(greenlet.getcurrent(), read)
            self._waiting.append(waiting)
            self._expect(waiting)
            self._scheduler.wait()

    def changed(self) -> None:
        """A device begins or ends to compute or to read."""
        for waiting in self._waiting:
            self._expect(waiting)

    def _expect(self, waiting: _Waiting) -> None:
        end_ns = waiting.read.end_ns
        if end_ns is None:
            end_ns = self._disk.expected_end(waiting.read)
        end_ns = max(end_ns, self._scheduler.now_ns)
        if end_ns != waiting.end_ns:
            waiting.end_ns = end_ns
            self._scheduler.at(end_ns, functools.partial(self._at, waiting, end_ns))

    def _at(self, waiting: _Waiting, end_ns: int) -> None:
        """The end that was expected, unless another one is by now."""
        if waiting.end_ns != end_ns:
            return
        waiting.end_ns = -1
        self._disk.advance(end_ns)
        if waiting.read.end_ns is None:
            self._expect(waiting)
        else:
            self._waiting.remove(waiting)
            waiting.device.switch()
