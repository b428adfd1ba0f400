"""Energy of a point that is measured on this host, from what it tells (`host/energy.py`)."""

from __future__ import annotations

import math

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.testbed import Testbed
from tpi_bench.host.energy import EnergyMeter, counter
from tpi_bench.report.rows import Energy


def meter_of(testbed: Testbed, job: Job) -> EnergyMeter:
    """Without a source where devices are not on this host, or are not real."""
    is_here = testbed.clock == "wall" and not job.hosts
    return EnergyMeter(counter() if is_here else None)


def energy_of(meter: EnergyMeter, outcome: Outcome) -> Energy:
    """Of the tokens after the first, as token latency is."""
    generation = outcome.generation
    if outcome.status != "ok" or generation is None or len(generation.token_ns) < 2:
        return Energy.unmeasured()
    first_ns, last_ns = generation.token_ns[0], generation.token_ns[-1]
    used = meter.joules_between(first_ns, last_ns)
    if math.isnan(used):
        return Energy.unmeasured()
    each = used / (len(generation.token_ns) - 1)
    return Energy(joules_per_token=each, energy_source=meter.source)
