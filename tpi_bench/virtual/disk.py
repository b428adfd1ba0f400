"""The disk of a virtual device, and the page cache in front of its mapped files.

The runtime asks the disk when a read ends, and the cache how much of a mapped file must be read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tpi_bench.contract.device import DeviceProfile

# Linux reads 128 KiB ahead (read_ahead_kb), and twice that of a file that is advised as sequential.
READ_AHEAD_BYTES = 128 << 10
ADVISED_BYTES = 2 * READ_AHEAD_BYTES
READS_IN_FLIGHT = 2  # the part that is waited for, and the next
# Of a new mapping of pages that are in memory: 24 ms a GB on a host of ours, in large folios.
FAULT_NS_PER_BYTE = 0.024


_ROUNDING_NS = 0.01  # sums of floats that ought to be equal


class PageCache:
    """How much of a device's mapped files is in memory: the least recently used pages go first.

    Files are touched from their start, so what is left of one is always its end: that keeps the
    account as small as the number of files. A cyclic scan of more than fits hits nothing: each page
    is evicted right before it is needed again. Linux is kinder at times (it keeps an active list);
    `fig_comparison` shows what it really does.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], int] = {}  # bytes by file, the least recent first

    def touch(self, path: str, nbytes: int, capacity_bytes: int) -> int:
        """Touch the first `nbytes` of a file in order; how many of them must be read.

        The cache holds no more than `capacity_bytes` at any moment. Another `nbytes` of the same
        path counts as another file.
        """
        self._shrink(capacity_bytes)
        file = (path, nbytes)
        held = self._held.get(file, 0)
        before = 0  # bytes that are evicted before those of this file
        for other, size in self._held.items():
            if other == file:
                break
            before += size
        room = capacity_bytes - sum(self._held.values())
        missing = nbytes - held
        if missing > room + before:  # its own end is evicted as fast as its start is read
            missing = nbytes
        self._held.pop(file, None)
        self._held[file] = nbytes
        self._shrink(capacity_bytes)
        return missing

    def _shrink(self, capacity_bytes: int) -> None:
        excess = sum(self._held.values()) - capacity_bytes
        for file in list(self._held):
            if excess <= 0:
                return
            evicted = min(excess, self._held[file])
            excess -= evicted
            self._held[file] -= evicted
            if not self._held[file]:
                del self._held[file]


@dataclass(eq=False)
class DiskRead:
    """A read that a disk was asked for. `end_ns` is known once it is over."""

    device: int
    nbytes: int
    on_end: Callable[[int], None]
    ready_ns: float | None = None  # when its latency is over; None: the disk has not begun with it
    end_ns: int | None = None

    def __post_init__(self) -> None:
        self.left: float = self.nbytes  # bytes


class DiskQueue:
    """In order; latencies of up to `disk_queue_depth` requests overlap, transfers do not.

    Between two reads is a gap where a device has asked for no more than the second: it begins when
    the one before has ended (`host/aio.py` says why), and its latency shows. Of several that wait
    the next is in flight by then.

    What it gives depends on what goes on beside it: less while all that read compute, and another
    rate for several devices that read at once and do not. So a read's end is known when it has
    come; until then `expected_end` says when it would come if nothing changed any more.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        self._latency_ns = round(profile.disk_latency_us * 1e3)
        self._depth = profile.disk_queue_depth
        self._alone = profile.disk_gb_per_s
        self._beside_computing = profile.disk_computing_gb_per_s or profile.disk_gb_per_s
        self._shared = profile.disk_shared_gb_per_s or profile.disk_gb_per_s
        self._gap_ns = profile.disk_gap_ns
        self._shared_gap_ns = profile.disk_shared_gap_ns
        self._reads: deque[DiskRead] = deque()
        self._num_reads: dict[int, int] = {}  # by device, of those that have some
        self._time_ns = 0.0  # until when transfers are accounted for
        self._num_computing = 0

    def read(
        self, now_ns: int, nbytes: int, device: int = 0, on_end: Callable[[int], None] | None = None
    ) -> DiskRead:
        """Ask for so many bytes. `on_end` is told the end as soon as it is known."""
        self.advance(now_ns)
        asked = DiskRead(device, nbytes, on_end or (lambda end_ns: None))
        self._reads.append(asked)
        self._num_reads[device] = self._num_reads.get(device, 0) + 1
        if len(self._reads) <= self._depth:
            asked.ready_ns = now_ns + self._latency_ns
        return asked

    def computing(self, now_ns: int, change: int) -> None:
        """One device more (1) computes, or one less (-1)."""
        if self._reads:
            self.advance(now_ns)
        self._num_computing += change

    def advance(self, now_ns: int) -> None:
        """Account for everything until now."""
        reads = self._reads
        while reads and self._time_ns <= now_ns:
            head = reads[0]
            assert head.ready_ns is not None
            start_ns = max(self._time_ns, head.ready_ns)
            end_ns = start_ns + head.left / self._gb_per_s()
            if end_ns > now_ns + _ROUNDING_NS:
                if now_ns > start_ns:
                    head.left -= (now_ns - start_ns) * self._gb_per_s()
                break
            self._end(end_ns)
        self._time_ns = max(self._time_ns, now_ns)

    def wait(self, now_ns: int, read: DiskRead) -> int:
        """When a device goes on that waits for a read from now on."""
        self.advance(now_ns)
        while read.end_ns is None:
            now_ns = max(now_ns, self.expected_end(read))
            self.advance(now_ns)
        return now_ns

    def expected_end(self, read: DiskRead) -> int:
        """When a read that is not over would end. Call `advance` first."""
        time_ns, rate = self._time_ns, self._gb_per_s()
        num_reads = dict(self._num_reads)
        ends: list[float] = []
        for number, each in enumerate(self._reads):
            admitted_ns = ends[number - self._depth] if number >= self._depth else 0.0
            ready_ns = admitted_ns + self._latency_ns if each.ready_ns is None else each.ready_ns
            gap_ns = self._gap(num_reads, each.device) if number else 0.0
            time_ns = max(time_ns + gap_ns, ready_ns) + each.left / rate
            _count_one_less(num_reads, each.device)
            ends.append(time_ns)
            if each is read:
                break
        return math.ceil(round(time_ns, 3))

    def stream(self, now_ns: int, nbytes: int, part_bytes: int, in_flight: int) -> int:
        """When `nbytes` of a mapped file have come, in parts, so many at once, one after another.

        A part is asked for when the one `in_flight` before it has come; whole rounds of them take a
        latency and a transfer where the latency is longer than the transfers that hide it. Nothing
        else is read meanwhile.
        """
        self.advance(now_ns)
        in_flight = min(in_flight, self._depth)
        start = max(now_ns, self._time_ns)
        if self._reads:
            start = max(start, self.expected_end(self._reads[-1]))
        num_parts = -(-nbytes // part_bytes)
        part_ns = part_bytes / self._alone
        if self._latency_ns <= (in_flight - 1) * part_ns:
            took = self._latency_ns + num_parts * part_ns
        else:
            rounds, last = divmod(num_parts - 1, in_flight)
            took = (rounds + 1) * (self._latency_ns + part_ns) + last * part_ns
        end = start + round(took - (num_parts * part_bytes - nbytes) / self._alone)
        self._time_ns = end
        return round(end)

    def _gb_per_s(self) -> float:
        """What the disk gives right now, in bytes a nanosecond."""
        num_reading = len(self._num_reads)
        rate = self._shared if num_reading > 1 else self._alone
        all_compute = self._num_computing and self._num_computing >= num_reading
        return min(rate, self._beside_computing) if all_compute else rate

    def _gap(self, num_reads: dict[int, int], device: int) -> float:
        """Before the next read, which is the device's, of these that are left."""
        if num_reads[device] > 1:
            return 0.0
        return self._shared_gap_ns if len(num_reads) > 1 else self._gap_ns

    def _end(self, end_ns: float) -> None:
        """The first read is over; another one's latency begins."""
        head = self._reads.popleft()
        _count_one_less(self._num_reads, head.device)
        self._time_ns = end_ns
        if len(self._reads) >= self._depth:
            self._reads[self._depth - 1].ready_ns = end_ns + self._latency_ns
        if self._reads:
            following = self._reads[0]
            gap_ns = self._gap(self._num_reads, following.device)
            following.ready_ns = max(following.ready_ns or 0.0, end_ns + gap_ns)
        head.end_ns = math.ceil(round(end_ns, 3))
        head.on_end(head.end_ns)


def _count_one_less(num_reads: dict[int, int], device: int) -> None:
    num_reads[device] -= 1
    if not num_reads[device]:
        del num_reads[device]
