"""The disk of a virtual device, and the page cache in front of its mapped files.

The runtime asks the disk when a read ends, and the cache how much of a mapped file must be read.
"""

from __future__ import annotations

from tpi_bench.contract.device import DeviceProfile

# Linux reads 128 KiB ahead (read_ahead_kb), and twice that of a file that is advised as sequential.
READ_AHEAD_BYTES = 128 << 10
ADVISED_BYTES = 2 * READ_AHEAD_BYTES
READS_IN_FLIGHT = 2  # the part that is waited for, and the next
# Of a new mapping of pages that are in memory: 24 ms a GB on a host of ours, in large folios.
FAULT_NS_PER_BYTE = 0.024


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


class DiskQueue:
    """In order; latencies of up to `disk_queue_depth` requests overlap, transfers do not."""

    def __init__(self, profile: DeviceProfile) -> None:
        self._latency_ns = round(profile.disk_latency_us * 1e3)
        self._gb_per_s = profile.disk_gb_per_s
        self._recent = [0] * profile.disk_queue_depth  # ends of the last requests, oldest first

    def read(self, now_ns: int, nbytes: int) -> int:
        """When a read of `nbytes` that is asked for now has ended."""
        admitted = max(now_ns, self._recent[0])
        start = max(admitted + self._latency_ns, self._recent[-1])
        end = start + round(nbytes / self._gb_per_s)
        self._recent = [*self._recent[1:], end]
        return end

    def stream(self, now_ns: int, nbytes: int, part_bytes: int, in_flight: int) -> int:
        """When `nbytes` have come that are read in parts, so many at once, one after another.

        A part is asked for when the one `in_flight` before it has come; whole rounds of them take a
        latency and a transfer where the latency is longer than the transfers that hide it.
        """
        in_flight = min(in_flight, len(self._recent))
        start = max(now_ns, self._recent[-1])
        num_parts = -(-nbytes // part_bytes)
        part_ns = part_bytes / self._gb_per_s
        if self._latency_ns <= (in_flight - 1) * part_ns:
            took = self._latency_ns + num_parts * part_ns
        else:
            rounds, last = divmod(num_parts - 1, in_flight)
            took = (rounds + 1) * (self._latency_ns + part_ns) + last * part_ns
        end = start + round(took - (num_parts * part_bytes - nbytes) / self._gb_per_s)
        self._recent = [end] * len(self._recent)
        return end
