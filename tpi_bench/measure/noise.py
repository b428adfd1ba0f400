"""What this host did beside a point that was measured on it: before, meanwhile and after."""

from __future__ import annotations

from dataclasses import replace

from tpi_bench.contract.testbed import Testbed
from tpi_bench.host.machine import HostState
from tpi_bench.measure.probe import HostLimits
from tpi_bench.report.rows import HostNoise

_LOOK_S = 0.1


def look_at_host(testbed: Testbed) -> HostState | None:
    """None where this host's speed is not in the rows."""
    return HostState.look(_LOOK_S) if testbed.measures_here else None


def noise_of(
    before: HostState | None,
    after: HostState | None,
    probed_before: HostLimits | None,
    probed_after: HostLimits | None,
) -> HostNoise:
    """The columns; those of probes are empty where nothing of this host was probed."""
    noise = HostNoise.unmeasured()
    if before is not None and after is not None:
        noise = replace(
            noise,
            busy_cores_start=before.busy_cores,
            busy_cores_end=after.busy_cores,
            steal_share=before.stolen_share(after),
            clock_mhz_start=before.clock_mhz,
            clock_mhz_end=after.clock_mhz,
        )
    if probed_before is not None:
        memory_bps, disk_bps = probed_before.memory_bps, probed_before.disk_bps
        noise = replace(noise, memory_bps_start=memory_bps, disk_bps_start=disk_bps)
    if probed_after is not None:
        memory_bps, disk_bps = probed_after.memory_bps, probed_after.disk_bps
        noise = replace(noise, memory_bps_end=memory_bps, disk_bps_end=disk_bps)
    return noise
