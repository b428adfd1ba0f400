"""A disk's queue in virtual time, against hand-made sums."""

from __future__ import annotations

from dataclasses import replace

from tpi_bench.contract.device import ideal_device
from tpi_bench.virtual.disk import DiskQueue

US = 1_000


def disk(gb_per_s: float, latency_us: float, depth: int) -> DiskQueue:
    profile = replace(
        ideal_device(),
        disk_gb_per_s=gb_per_s,
        disk_latency_us=latency_us,
        disk_queue_depth=depth,
    )
    return DiskQueue(profile)


def test_a_disk_of_depth_one_adds_latencies_and_transfers() -> None:
    """1 byte a ns, 10 us latency; three requests at once of 5, 20 and 1 us: each 10 more."""
    queue = disk(1, 10, 1)
    assert [queue.read(0, size * US) for size in (5, 20, 1)] == [15 * US, 45 * US, 56 * US]
    assert queue.read(100 * US, 5 * US) == 115 * US  # idle again


def test_a_disk_of_depth_two_overlaps_the_next_latency() -> None:
    """The second's latency runs with the first's: 10, 15-35; the third is let in at 15.

    Its latency ends at 25, and it waits for the second's transfer: 35-36.
    """
    queue = disk(1, 10, 2)
    assert [queue.read(0, size * US) for size in (5, 20, 1)] == [15 * US, 35 * US, 36 * US]


def test_small_reads_of_depth_two_are_bound_by_latency() -> None:
    """Two at once: 10-11, 11-12; the third is let in at 11: 21-22, the fourth at 12: 22-23."""
    queue = disk(1, 10, 2)
    assert [queue.read(0, US) for _ in range(4)] == [11 * US, 12 * US, 22 * US, 23 * US]


def test_a_late_request_waits_for_the_transfer_before_it() -> None:
    """Without latency: 0-30; asked for at 10, 30-40."""
    queue = disk(1, 0, 4)
    assert [queue.read(0, 30 * US), queue.read(10 * US, 10 * US)] == [30 * US, 40 * US]


def test_an_ideal_disk_takes_no_time() -> None:
    assert DiskQueue(ideal_device()).read(7, 1 << 40) == 7
