"""Spans of nodes on the master's clock."""

from __future__ import annotations

import math

from tpi_bench.cluster.clocks import offset_at, on_the_masters_clock
from tpi_bench.contract.job import DeviceReport, Outcome
from tpi_bench.contract.runtime import ClockReading, Span

START = ClockReading(rank=1, offset_ns=1_000_000, error_ns=40, at_ns=0)
END = ClockReading(rank=1, offset_ns=1_000_200, error_ns=90, at_ns=1_000_000)


def report(rank: int, *spans: Span) -> DeviceReport:
    return DeviceReport(
        rank=rank,
        pid=1,
        num_threads=1,
        kernel="",
        start_anon_bytes=0,
        peak_anon_bytes=0,
        peak_file_bytes=0,
        weight_bytes_read=0,
        bytes_sent=0,
        bytes_received=0,
        ledger_bytes={},
        read_mode="none",
        spans=list(spans),
    )


def test_a_clock_drifts_evenly_between_its_readings() -> None:
    assert offset_at([START, END], 1_000_000) == 1_000_000
    assert offset_at([START, END], 1_500_100) == 1_000_100
    assert offset_at([START, END], 2_000_200) == 1_000_200
    assert offset_at([START, END], 9_000_000) == 1_000_200
    assert offset_at([START], 5) == 1_000_000


def test_spans_are_moved_and_the_error_is_kept() -> None:
    span = Span("compute", "attn", 1_500_100, 2_000_200)
    mine, theirs = report(0, Span("compute", "attn", 5, 9)), report(1, span)
    found = on_the_masters_clock(Outcome(status="ok", devices=[mine, theirs], clocks=[END, START]))
    moved = found.devices[1].spans[0]
    assert (moved.start_ns, moved.end_ns) == (500_000, 1_000_000)
    assert (theirs.clock_offset_ns, theirs.clock_error_ns) == (1_000_000, 90)
    assert (mine.clock_offset_ns, mine.clock_error_ns) == (0, 0)
    assert mine.spans[0] == Span("compute", "attn", 5, 9)


def test_without_readings_nothing_is_moved() -> None:
    theirs = report(1, Span("compute", "attn", 5, 9))
    on_the_masters_clock(Outcome(status="ok", devices=[theirs]))
    assert theirs.spans[0].start_ns == 5
    assert math.isnan(theirs.clock_offset_ns)
