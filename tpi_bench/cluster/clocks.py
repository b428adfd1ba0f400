"""Clocks of nodes beside the master's: spans of all devices on one time line.

The master asks each worker what time it is, before the program and after it (`engine/rank.py`): a
worker's clock is read in the middle of a round trip, give or take half of it. Between the two
readings a clock is taken to drift evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tpi_bench.contract.job import Outcome
from tpi_bench.contract.runtime import ClockReading


def on_the_masters_clock(outcome: Outcome) -> Outcome:
    """Move the workers' spans, and note by how much and how sure that is."""
    for report in outcome.devices:
        readings = sorted(
            (r for r in outcome.clocks if r.rank == report.rank), key=lambda each: each.at_ns
        )
        if report.rank == 0:
            report.clock_offset_ns, report.clock_error_ns = 0.0, 0.0
        if not readings:
            continue
        report.clock_offset_ns = float(readings[0].offset_ns)
        report.clock_error_ns = float(max(reading.error_ns for reading in readings))
        report.spans = [
            replace(
                span,
                start_ns=span.start_ns - offset_at(readings, span.start_ns),
                end_ns=span.end_ns - offset_at(readings, span.end_ns),
            )
            for span in report.spans
        ]
    return outcome


def offset_at(readings: Sequence[ClockReading], worker_ns: int) -> int:
    """How far a worker's clock is ahead when it shows `worker_ns`. Readings are in order of time.

    Outside of the readings the nearest counts.
    """
    first, last = readings[0], readings[-1]
    from_ns, to_ns = first.at_ns + first.offset_ns, last.at_ns + last.offset_ns
    if to_ns <= from_ns:
        return first.offset_ns
    share = min(1.0, max(0.0, (worker_ns - from_ns) / (to_ns - from_ns)))
    return first.offset_ns + round(share * (last.offset_ns - first.offset_ns))
