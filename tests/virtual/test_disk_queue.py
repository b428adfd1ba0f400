"""A disk's queue in virtual time, against hand-made sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tpi_bench.contract.device import ideal_device
from tpi_bench.virtual.disk import DiskQueue

US = 1_000


def disk(gb_per_s: float, latency_us: float, depth: int, **others: float) -> DiskQueue:
    profile = replace(
        ideal_device(),
        disk_gb_per_s=gb_per_s,
        disk_latency_us=latency_us,
        disk_queue_depth=depth,
        **others,
    )
    return DiskQueue(profile)


def ends(queue: DiskQueue, now_ns: int, sizes: Sequence[int]) -> list[int]:
    """Of reads that are asked for at once: as expected, and as they come."""
    reads = [queue.read(now_ns, size) for size in sizes]
    expected = [queue.expected_end(read) for read in reads]
    queue.advance(max(expected))
    assert [read.end_ns for read in reads] == expected
    return expected


def test_a_disk_of_depth_one_adds_latencies_and_transfers() -> None:
    """1 byte a ns, 10 us latency; three requests at once of 5, 20 and 1 us: each 10 more."""
    queue = disk(1, 10, 1)
    assert ends(queue, 0, [5 * US, 20 * US, 1 * US]) == [15 * US, 45 * US, 56 * US]
    assert ends(queue, 100 * US, [5 * US]) == [115 * US]  # idle again


def test_a_disk_of_depth_two_overlaps_the_next_latency() -> None:
    """The second's latency runs with the first's: 10, 15-35; the third is let in at 15.

    Its latency ends at 25, and it waits for the second's transfer: 35-36.
    """
    assert ends(disk(1, 10, 2), 0, [5 * US, 20 * US, 1 * US]) == [15 * US, 35 * US, 36 * US]


def test_small_reads_of_depth_two_are_bound_by_latency() -> None:
    """Two at once: 10-11, 11-12; the third is let in at 11: 21-22, the fourth at 12: 22-23."""
    assert ends(disk(1, 10, 2), 0, [US] * 4) == [11 * US, 12 * US, 22 * US, 23 * US]


def test_between_two_reads_is_a_gap() -> None:
    """1 byte a ns, 10 us latency, 4 us from a read's end to the next: 10-15, 19-39."""
    queue = disk(1, 10, 4, disk_gap_us=4)
    assert ends(queue, 0, [5 * US, 20 * US]) == [15 * US, 39 * US]
    assert ends(queue, 100 * US, [5 * US]) == [115 * US]  # idle again: only its latency


def test_of_several_reads_that_wait_the_next_is_in_flight() -> None:
    """10-15, 15-35; only the last is asked for alone: 39-40."""
    queue = disk(1, 10, 4, disk_gap_us=4)
    assert ends(queue, 0, [5 * US, 20 * US, 1 * US]) == [15 * US, 35 * US, 40 * US]


def test_a_latency_that_is_longer_hides_the_gap() -> None:
    """Asked for at 12 us, its latency ends at 22; the one before it, and the gap, at 19."""
    queue = disk(1, 10, 4, disk_gap_us=4)
    queue.read(0, 5 * US)
    late = queue.read(12 * US, 5 * US)
    assert queue.expected_end(late) == 27 * US
    queue.advance(30 * US)
    assert late.end_ns == 27 * US


def test_for_several_devices_the_gap_is_another() -> None:
    """0-10; the other's only read 11-20; two of the first are left: 20-26; then one: 30-35."""
    queue = disk(1, 0, 4, disk_gap_us=4, disk_shared_gap_us=1)
    asked = ((0, 10), (1, 9), (0, 6), (0, 5))
    reads = [queue.read(0, size * US, device) for device, size in asked]
    assert [queue.expected_end(read) for read in reads] == [10 * US, 20 * US, 26 * US, 35 * US]
    queue.advance(100 * US)
    assert [read.end_ns for read in reads] == [10 * US, 20 * US, 26 * US, 35 * US]


def test_a_late_request_waits_for_the_transfer_before_it() -> None:
    """Without latency: 0-30; asked for at 10, 30-40."""
    queue = disk(1, 0, 4)
    first = queue.read(0, 30 * US)
    second = queue.read(10 * US, 10 * US)
    assert (queue.expected_end(first), queue.expected_end(second)) == (30 * US, 40 * US)


def test_an_ideal_disk_takes_no_time() -> None:
    assert ends(DiskQueue(ideal_device()), 7, [1 << 40]) == [7]


def test_a_disk_gives_less_while_its_device_computes() -> None:
    """2 bytes a ns, 1 beside computing: 10 us idle (20 KB), 30 computing (30 KB), 5 idle (10 KB).

    What was expected before changes with what goes on.
    """
    queue = disk(2, 0, 4, disk_computing_gb_per_s=1)
    told: list[int] = []
    read = queue.read(0, 60_000, on_end=told.append)
    assert queue.expected_end(read) == 30 * US
    queue.computing(10 * US, +1)
    assert queue.expected_end(read) == 50 * US
    queue.computing(40 * US, -1)
    assert queue.expected_end(read) == 45 * US
    assert (read.end_ns, told) == (None, [])
    queue.advance(50 * US)
    assert (read.end_ns, told) == (45 * US, [45 * US])


def test_devices_that_read_at_once_share_what_there_is() -> None:
    """2 bytes a ns alone, 1 for both: 20 KB of each; the second is alone from 20 us on."""
    queue = disk(2, 0, 4, disk_shared_gb_per_s=1)
    reads = [queue.read(0, 20_000, device) for device in (0, 1)]
    queue.advance(40 * US)
    assert [read.end_ns for read in reads] == [20 * US, 30 * US]


def test_of_two_that_read_a_disk_gives_less_when_both_compute() -> None:
    """3 bytes a ns (60 KB in 20 us, though one computes), then 1: 30 us, and 30 for the other."""
    queue = disk(4, 0, 4, disk_shared_gb_per_s=3, disk_computing_gb_per_s=1)
    reads = [queue.read(0, size, device) for device, size in enumerate((90_000, 30_000))]
    queue.computing(10 * US, +1)
    queue.computing(20 * US, +1)
    queue.advance(100 * US)
    assert [read.end_ns for read in reads] == [50 * US, 80 * US]


def test_fractions_of_a_nanosecond_do_not_keep_a_read_for_ever() -> None:
    """Whoever sleeps until the expected end finds it over.

    1 ns of latency, 99 at 3 bytes, 233 at 0.7 beside computing; the rest takes 259.
    """
    queue = disk(3, 0.001, 2, disk_computing_gb_per_s=0.7)
    for start in range(0, 10**6, 1009):
        read = queue.read(start, 1237)
        queue.computing(start + 100, +1)
        queue.computing(start + 333, -1)
        queue.advance(queue.expected_end(read))
        assert read.end_ns == pytest.approx(start + 333 + 259, abs=1)
