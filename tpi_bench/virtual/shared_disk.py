"""The disk of several virtual devices, as processes of one host have it.

What it gives changes whenever one of them begins or ends to compute or to read, so a wait for a
read may be over sooner or later than was expected when it began. A device's clock runs ahead of the
world's: before it does anything here, everything else happens that comes before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from greenlet import greenlet

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.virtual.disk import DiskQueue, DiskRead
from tpi_bench.virtual.scheduler import Scheduler


@dataclass(eq=False)
class _Waiting:
    """A device that waits for a read, which is expected to end then; -1: it no longer waits."""

    device: greenlet
    read: DiskRead
    end_ns: int = -1


class SharedDisk(DiskQueue):
    """Used by the greenlets of its devices, each at a time of its own that is not past."""

    def __init__(self, profile: DeviceProfile, scheduler: Scheduler) -> None:
        super().__init__(profile)
        self._scheduler = scheduler
        self._waiting: list[_Waiting] = []

    def read(
        self, now_ns: int, nbytes: int, device: int = 0, on_end: Callable[[int], None] | None = None
    ) -> DiskRead:
        self._scheduler.sleep_until(now_ns)
        asked = super().read(now_ns, nbytes, device, on_end)
        self._expect_again()
        return asked

    def computing(self, now_ns: int, change: int) -> None:
        self._scheduler.sleep_until(now_ns)
        super().computing(now_ns, change)
        self._expect_again()

    def stream(self, now_ns: int, nbytes: int, part_bytes: int, in_flight: int) -> int:
        self._scheduler.sleep_until(now_ns)
        return super().stream(now_ns, nbytes, part_bytes, in_flight)

    def wait(self, now_ns: int, read: DiskRead) -> int:
        self._scheduler.sleep_until(now_ns)
        self.advance(now_ns)
        if read.end_ns is None:
            waiting = _Waiting(greenlet.getcurrent(), read)
            self._waiting.append(waiting)
            self._expect(waiting)
            self._scheduler.wait()
        return self._scheduler.now_ns

    def _expect_again(self) -> None:
        for waiting in self._waiting:
            self._expect(waiting)

    def _expect(self, waiting: _Waiting) -> None:
        end_ns = waiting.read.end_ns
        if end_ns is None:
            end_ns = self.expected_end(waiting.read)
        end_ns = max(end_ns, self._scheduler.now_ns)
        if end_ns != waiting.end_ns:
            waiting.end_ns = end_ns
            self._scheduler.at(end_ns, functools.partial(self._at, waiting, end_ns))

    def _at(self, waiting: _Waiting, end_ns: int) -> None:
        """The end that was expected, unless another one is by now."""
        if waiting.end_ns != end_ns:
            return
        waiting.end_ns = -1
        self.advance(end_ns)
        if waiting.read.end_ns is None:
            self._expect(waiting)
        else:
            self._waiting.remove(waiting)
            waiting.device.switch()
