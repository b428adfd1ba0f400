"""Whether a point fits into its devices' memory, and with which settings it would.

What is advised has been planned anew and found to fit; nothing is said of what would not help.
`prepare.py` refuses what cannot fit before a device starts, `point.py` asks when one ran out.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpi_bench.contract.job import Job
from tpi_bench.contract.model import Model
from tpi_bench.contract.plan import DoesNotFit
from tpi_bench.contract.system import System
from tpi_bench.engine.budget import cache_bytes, draft_weight_bytes, other_bytes
from tpi_bench.engine.streaming import WindowedSystem
from tpi_bench.host import cache
from tpi_bench.measure.planned import Devices, load_model, planned_job
from tpi_bench.measure.settings import Settings

_NARROWER: tuple[tuple[str, dict[str, str]], ...] = (
    ("model.dtype=bfloat16", {"dtype": "bfloat16", "weights": "auto"}),
    ("model.weights=q8", {"weights": "q8"}),
    ("model.weights=q4", {"weights": "q4"}),
)
_MOST_DEVICES = 16
_HELPS = 0.9  # of what is needed now: what takes more than this is no help


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A point that does not fit, and what another one like it is planned with."""

    settings: Settings
    model: Model
    devices: Devices
    job: Job

    def planned(self, **changes: Any) -> Job:
        """The job with other settings. Raises ValueError where there is none."""
        devices = changes.pop("devices", self.devices)
        settings, model = replace(self.settings, **changes), self.model
        if "model" in changes:
            model = load_model(settings.model, cache.cache_folder(settings.cache_dir))
        return planned_job(settings, model, self.job.request, devices)


def refuse_too_little(settings: Settings, model: Model, job: Job, devices: Devices) -> None:
    """Raises DoesNotFit where an enforced cap is below what a device holds for certain."""
    spare = settings.testbed.spare_bytes
    if devices.memory_bytes is None or spare is None:
        return
    for rank in range(job.num_devices):
        lacks = _lacks(job, rank, spare)
        if lacks is not None:
            cap = _mb(job.memory_of(rank))
            raise DoesNotFit(
                f"device.memory_mb={cap} is too little for device {rank}, which {lacks}; "
                + advice(settings, model, job, devices)
            )


def _lacks(job: Job, rank: int, spare: int) -> str | None:
    """What a device needs, in words, where its cap is below that for certain."""
    begins_with = job.memory_of(rank) - job.free_of(rank)
    if not job.blocks:  # of a library only the start is known, where that counts
        starts = job.free_of(rank) + spare > 0 or not job.program.uses_torch
        return None if starts else f"has {_mb(begins_with - spare)} MB before it loads anything"
    if _weights(job, rank) + cache_bytes(job, rank) <= job.free_of(rank) + spare:
        return None
    return (
        f"needs {_mb(_needed(job, rank))} MB: {_mb(_weights(job, rank))} of weights, "
        f"{_mb(other_bytes(job, rank))} of KV cache and activations, and {_mb(begins_with)} that "
        "it starts with and grows by"
    )


def advice(settings: Settings, model: Model, job: Job, devices: Devices) -> str:
    """What would fit instead of a job that does not."""
    ranks = range(job.num_devices)
    each = [_needed(job, rank) for rank in ranks]
    now = max(each)
    point = _Point(settings=settings, model=model, devices=devices, job=job)
    found = list(_that_fit(point, now))
    caps = [job.memory_of(rank) for rank in ranks]
    if all(map(math.isfinite, caps)):
        is_known = any(map(operator.gt, each, caps)) and job.blocks
        found.append(_enough(job, each) if is_known else "a larger device.memory_mb")
    if not found:
        return "no setting of this system needs less; take a smaller model"
    return f"what fits: {', '.join(found[:-1])}{' or ' * (len(found) > 1)}{found[-1]}"


def _enough(job: Job, needed: Sequence[float]) -> str:
    """What gives every device the memory that it needs, or has already."""
    caps = [job.memory_of(rank) for rank in range(job.num_devices)]
    if job.profiles and not job.memory_bytes:
        lacking = [rank for rank, cap in enumerate(caps) if needed[rank] > cap]
        by_name: dict[str, int] = {}  # the neediest of each profile
        for rank in sorted(lacking, key=lambda rank: needed[rank]):
            by_name[job.profiles[rank].name] = rank
        return " ".join(job.memory_setting(r, _mb(needed[r])) for r in sorted(by_name.values()))
    if len(set(caps)) == 1:
        return f"device.memory_mb={_mb(max(needed))}"
    return f"device.memory_mb=[{','.join(_mb(max(b)) for b in zip(needed, caps, strict=True))}]"


def _that_fit(point: _Point, now: float) -> Iterator[str]:
    """Other settings with which every device has enough, each with what the neediest needs: that
    with the least to spare, where they differ.
    """
    for words, planned in _others(point):
        try:
            job = planned()
            needed = [_needed(job, rank) for rank in range(job.num_devices)]
        except ValueError:  # it cannot be divided or held so
            continue
        caps = [job.memory_of(rank) for rank in range(job.num_devices)]
        if any(map(operator.gt, needed, caps)) or max(needed) > _HELPS * now:
            continue
        if len(set(caps)) == 1:
            yield f"{words} ({_mb(max(needed))} MB)"
        else:
            rank = max(range(job.num_devices), key=lambda rank: needed[rank] / caps[rank])
            yield f"{words} ({_mb(needed[rank])} of {_mb(caps[rank])} MB on device {rank})"
        if words.startswith("testbed.num_devices"):
            return  # the fewest will do


def _others(point: _Point) -> Iterator[tuple[str, Callable[[], Job]]]:
    """What could be set instead, and the job that it would make."""
    settings, job = point.settings, point.job
    source: Any = settings.model
    for words, changes in _NARROWER:
        yield words, functools.partial(_with_model, point, source, changes)
    system = settings.system
    if isinstance(system, WindowedSystem) and system.window_config.holds_all:
        window = "auto" if math.isfinite(job.free_of(0)) else 2
        other = replace(system, window=window)
        yield f"system.window={window}", functools.partial(point.planned, system=other)
    testbed: Any = settings.testbed
    for count in _larger_counts(point):
        more = _with_devices(point.devices, count)
        given = {"testbed": replace(testbed, num_devices=count), "devices": more}
        yield f"testbed.num_devices={count}", functools.partial(point.planned, **given)


def _with_model(point: _Point, source: Any, changes: dict[str, str]) -> Job:
    """Raises ValueError where the model cannot be held so."""
    return point.planned(model=replace(source, **changes))


def _larger_counts(point: _Point) -> range:
    """Numbers of devices that could be tried: each brings memory of its own, and is like the
    others.
    """
    settings, job = point.settings, point.job
    each = {
        (job.memory_of(rank), *job.profiles[rank : rank + 1]) for rank in range(job.num_devices)
    }
    bounded = all(math.isfinite(job.memory_of(rank)) for rank in range(job.num_devices))
    alike = len(each) == 1 and not isinstance(settings.testbed.proportions, list)
    if not bounded or not alike or settings.system.max_devices or len(settings.profiles) > 1:
        return range(0)
    return range(job.num_devices + 1, _MOST_DEVICES + 1)


def _with_devices(devices: Devices, count: int) -> Devices:
    """So many of the first."""
    return replace(
        devices,
        shares=[1.0] * count,
        cpus=None,
        memory_bytes=devices.memory_bytes and devices.memory_bytes[:1] * count,
        profiles=devices.profiles[:1] * count,
        free_bytes=devices.free_bytes and devices.free_bytes[:1] * count,
    )


def _needed(job: Job, rank: int) -> float:
    """What a device needs in all; of a library, what its weights take at least.

    Raises ValueError where there is no plan.
    """
    start = job.memory_of(rank) - job.free_of(rank) if job.free_bytes else 0.0
    return start + _weights(job, rank) + (other_bytes(job, rank) if job.blocks else 0)


def _weights(job: Job, rank: int) -> int:
    """Those that a device holds at once."""
    system = job.program
    assert isinstance(system, System)
    if not job.blocks:
        return system.token_weight_bytes(job) // job.num_devices
    streaming = system.streaming(job, rank)
    return streaming.kept_bytes + streaming.area_bytes + draft_weight_bytes(job, rank)


def _mb(nbytes: float) -> str:
    """Rounded up: what is named must be enough."""
    return f"{math.ceil(nbytes / 1e6)}" if nbytes >= 1e8 else f"{math.ceil(nbytes / 1e4) / 100:g}"
