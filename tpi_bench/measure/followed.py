"""This host as it is right now, where `device=this_host` stands for it: `testbed.follows_host`.

A shared host drifts: the disk of one of ours gave 3.15 GB/s when it was calibrated and 2.2 within
the hour, and the same products took a third longer in one repeat than in another. So what a point
needs of the profile is measured again right before it, and what was calibrated goes along.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from tpi_bench.contract.blocks import Extent
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.measure.blocks import blocks_there
from tpi_bench.measure.calibrate import typical
from tpi_bench.measure.core_rates import product_rates, products_of, shared_memory_rate
from tpi_bench.measure.disk_rates import BY_PROBE, PROBE
from tpi_bench.measure.limits import streamed_extents
from tpi_bench.measure.prepare import Prepared
from tpi_bench.measure.probe import DiskPasses, HostLimits, disk_passes

T = TypeVar("T")

# A run of some seconds has a disk's mean; of one of ours that changed every half a second.
_PROBING_S = 1.0
_VALID_S = 20.0  # so long one measurement is good for the twins of a point, one after the other

_found: dict[object, tuple[float, object]] = {}  # by what was measured: when, and what


def brought_up_to_date(prepared: Prepared) -> tuple[Prepared, HostLimits | None]:
    """The point on this host as it is now, and what its disk gave; as it is where the testbed does
    not follow this host, and where no device is it.
    """
    job = prepared.job
    here = [profile for profile in job.profiles if _is_this_host(profile)]
    if not prepared.settings.testbed.follows_host or not here:
        return prepared, None
    disk, now = _disk_now(prepared), _rates_now(prepared, here[0])
    if disk.taken_s:
        now[PROBE] = disk.mean_bps / 1e9
    profiles = tuple(at_rates(p, now) if _is_this_host(p) else p for p in job.profiles)
    probed = HostLimits(memory_bps=math.nan, disk_bps=disk.best_bps, spread=disk.spread)
    return replace(prepared, job=replace(job, profiles=profiles)), probed


def _is_this_host(profile: DeviceProfile) -> bool:
    return profile.name == "this_host" and len(profile.rounds) > 0


def _disk_now(prepared: Prepared) -> DiskPasses:
    """Over what the point reads."""
    extents = _files_read(prepared)
    if not extents:
        return DiskPasses(0, [])
    return _lately(("disk", extents), lambda: in_helper(disk_passes, extents, _PROBING_S))


def _rates_now(prepared: Prepared, profile: DeviceProfile) -> dict[str, float]:
    """Of this host's cores, by the names of a profile, what the point needs."""
    testbed, job = prepared.settings.testbed, prepared.job
    now: dict[str, float] = {}
    if job.num_devices > 1 and profile.memory_shared_gb_per_s is not None:
        with contextlib.suppress(ValueError):  # too busy to say: as it was calibrated
            now |= _lately("memory", shared_memory_rate)
    if testbed.cost == "modelled":
        asked = products_of(job, profile)
        now |= _lately(asked, lambda: in_helper(product_rates, *asked))
    return now


def _files_read(prepared: Prepared) -> tuple[Extent, ...]:
    """What its tokens are read from, if that has been made: predicting makes no files."""
    job, settings = prepared.job, prepared.settings
    if job.plan is not None and job.blocks and not settings.testbed.opens_files:
        there = blocks_there(prepared.model, job.plan, cache.cache_folder(settings.cache_dir))
        if not there:
            return ()
        job = replace(job, blocks=there)
    return tuple(streamed_extents(settings.system, job))


def _lately(what: object, measure: Callable[[], T]) -> T:
    """What `measure` gives, or gave a few seconds ago."""
    for key, (then_s, _) in list(_found.items()):
        if time.monotonic() - then_s > _VALID_S:
            del _found[key]
    if what not in _found:
        value = measure()
        _found[what] = time.monotonic(), value
    found: T = _found[what][1]  # type: ignore[assignment]  # of the same question
    return found


def at_rates(profile: DeviceProfile, now: Mapping[str, float]) -> DeviceProfile:
    """A calibrated device at the rates of now: each of its rounds is moved by what its numbers have
    changed, so rounds differ as they did.

    Rates of the disk go with its probe: each round was measured on files of its own, at another
    time, beside a probe of them.
    """
    rounds = [dict(each) for each in profile.rounds]
    calibrated = rounds[0].keys()
    changed = [name for name in now if name in calibrated and name != PROBE]
    factors = {name: now[name] / typical(name, [r[name] for r in rounds]) for name in changed}
    for found in rounds:
        for name in changed:
            found[name] *= factors[name]
    if PROBE in now and PROBE in calibrated:
        of_disk = [name for name in BY_PROBE if name in calibrated]
        for found in rounds:
            for name in of_disk:
                found[name] *= now[PROBE] / found[PROBE]
            found[PROBE] = now[PROBE]
        changed += [*of_disk, PROBE]
    typically: dict[str, Any] = {
        name: typical(name, [found[name] for found in rounds]) for name in changed
    }
    return replace(profile, rounds=tuple(tuple(found.items()) for found in rounds), **typically)
