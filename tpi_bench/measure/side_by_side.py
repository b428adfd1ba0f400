"""Modelled points of virtual time, one after another: their records in the order of the points.

A point that cannot be prepared or run is a record that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tpi_bench.contract.plan import DoesNotFit
from tpi_bench.host.fork import HelperDied
from tpi_bench.measure.point import measure
from tpi_bench.measure.prepare import prepare
from tpi_bench.measure.record import failure_record
from tpi_bench.measure.settings import Settings
from tpi_bench.report.rows import Record


def measured_side_by_side(
    points: Iterable[Settings], num_workers: int | None = None
) -> Iterator[Record]:
    """The record of each point, exactly what `measure(prepare(settings))` gives."""
    for settings in points:
        try:
            yield measure(prepare(settings))
        except DoesNotFit as error:
            yield failure_record(settings, str(error), "oom")
        except (ValueError, OSError, HelperDied) as error:
            yield failure_record(settings, str(error))
