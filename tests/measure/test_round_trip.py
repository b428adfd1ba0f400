"""Messages between two plain processes."""

from __future__ import annotations

import psutil

from tpi_bench.measure.round_trip import raw_round_trip_s


def test_a_longer_message_takes_longer() -> None:
    """Four megabytes pass no loopback in the time of a word; and no process is left behind."""
    before = psutil.Process().children()
    short_s, long_s = raw_round_trip_s(8), raw_round_trip_s(4 << 20)
    assert 1e-6 < short_s < long_s
    assert psutil.Process().children() == before
