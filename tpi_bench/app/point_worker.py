"""A point of a sweep on a node of a cluster: from its configuration to its record.

`ray_launcher.py` makes it a Ray actor, one a core; what is loaded stays for the next point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpi_bench.cluster.surroundings import as_ray_was_started
from tpi_bench.report.rows import Record


class PointWorker:
    def __init__(self) -> None:
        as_ray_was_started()

    def record(self, raw: dict[str, Any], overrides: Sequence[str], started: str) -> Record:
        """What the command line would store of the point, whose values are `Settings.raw`. Raises
        ValueError for what cannot be.
        """
        from tpi_bench.app.compose import settings_from
        from tpi_bench.contract.job import Job, Outcome
        from tpi_bench.host import cache
        from tpi_bench.measure.attempt import attempted
        from tpi_bench.measure.turns import measuring_turn

        settings = settings_from(raw, overrides)

        def run_here(job: Job) -> Outcome:
            return settings.testbed.run_here(job, cache.cache_folder(settings.cache_dir))

        if settings.testbed.measures_here:
            with measuring_turn(settings.testbed, wait=True):
                return attempted(settings)
        return attempted(settings, run_here).begun(started)
