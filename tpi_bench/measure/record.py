"""From an outcome to a record: each function fills the columns of one part of the run row."""

from __future__ import annotations

import datetime
import math
import shlex
import statistics
from collections.abc import Sequence

from tpi_bench.contract.job import DeviceReport, Job, Outcome
from tpi_bench.contract.model import resolve_types
from tpi_bench.contract.request import Generation
from tpi_bench.contract.system import System
from tpi_bench.contract.testbed import Testbed
from tpi_bench.host import page_cache
from tpi_bench.host.machine import available_cpus, provenance
from tpi_bench.measure.metrics import perplexity_of, speculated, token_rows
from tpi_bench.measure.prepare import Prepared
from tpi_bench.measure.settings import Settings
from tpi_bench.report.rows import (
    Asked,
    Circumstances,
    DeviceRow,
    Ended,
    Energy,
    Exactness,
    HostNoise,
    Limits,
    LinkRow,
    Links,
    Memory,
    PageCache,
    Provenance,
    Quality,
    Record,
    RunRow,
    SpanRow,
    Speed,
)


def make_record(
    prepared: Prepared,
    outcome: Outcome,
    started: str,
    speed: Speed,
    energy: Energy,
    limits: Limits,
    exactness: Exactness,
    cached: PageCache,
    noise: HostNoise,
) -> Record:
    """The record of a point that was run, however that ended."""
    settings, job = prepared.settings, prepared.job
    devices = sorted(outcome.devices, key=lambda device: device.rank)
    plans = [_plan_cells(settings.system, job, rank) for rank in range(job.num_devices)]
    run = RunRow.of(
        _asked(
            settings,
            prepared.model.name,
            (prepared.model.dtype, prepared.model.weights),
            _notes(settings.system, job, outcome.generation),
        ),
        _ended(started, outcome),
        _circumstances(settings, job, outcome),
        noise,
        speed,
        energy,
        speculated(job, outcome, is_library=settings.system.max_devices == 1),
        _links(job, outcome),
        limits,
        exactness,
        Quality(perplexity=perplexity_of(outcome.generation)),
        _how_it_was_read(cached, job, devices),
        _memory(outcome, plans),
        Provenance(**provenance()),
    )
    return Record(
        run=run,
        tokens=token_rows(outcome.generation),
        devices=[_device_row(device, plans[device.rank]) for device in devices],
        spans=[SpanRow(rank=d.rank, **vars(span)) for d in devices for span in d.spans],
        links=[LinkRow(**vars(link)) for link in outcome.links],
        config=settings.raw,
    )


def failure_record(settings: Settings, error: str, status: str = "error") -> Record:
    """The record of a point that could not be prepared or run."""
    started = datetime.datetime.now(datetime.UTC).isoformat()
    ended = Ended(started=started, status=status, error=error, wall_s=math.nan, num_events=None)
    precision = resolve_types(settings.model.dtype, settings.model.weights)
    asked = _asked(settings, _model_name(settings), precision)
    run = RunRow.of(asked, ended, Provenance(**provenance()))
    return Record(run=run, config=settings.raw)


def begin_page_cache(testbed: Testbed, job: Job, mode: str) -> PageCache:
    """Drop the point's files from the page cache if asked to; columns that say what it held."""
    said, cached_bytes = testbed.page_cache, math.nan
    if job.hosts:
        paths = [sorted({block.path for block in own}) for own in job.blocks]
        found = testbed.at_devices(job, page_cache.begin, [(own, mode) for own in paths])
        assert found is not None
        said, cached_bytes = found[0][0], sum(nbytes for _, nbytes in found)
    elif said is None:
        said, cached_bytes = page_cache.begin(job.opened_files, mode)
    return PageCache(
        cache=said,
        cached_bytes_start=cached_bytes,
        large_free_bytes=page_cache.large_free_bytes() if testbed.measures_here else math.nan,
        page_cache=None,
    )


def _asked(
    settings: Settings, model_name: str, precision: tuple[str, str], own_note: str = ""
) -> Asked:
    """`precision` is what the model says: dtype and weights."""
    system, testbed, network = settings.system, settings.testbed, settings.network
    dtype, weights = system.precision(*precision)
    own = {k: str(v) for k, v in settings.raw["system"].items() if k not in ("_target_", "name")}
    return Asked(
        experiment=settings.name,
        point=settings.point,
        config_hash=settings.config_hash,
        overrides=shlex.join(settings.own_overrides),
        repeat=settings.repeat,
        system=system.name,
        label=system.label,
        variant=system.variant,
        is_library=system.is_library,
        system_settings=own,
        model=model_name,
        dtype=dtype,
        weights=weights,
        workload=settings.workload.name,
        num_devices=settings.num_devices,
        topology=network.topology,
        link_latency_ms=network.link_latency_ms,
        jitter_ms=network.jitter_ms,
        bandwidth_mbps=network.bandwidth_mbps,
        clock=testbed.clock,
        cost=testbed.cost,
        note="; ".join(note for note in (testbed.note, own_note) if note),
        memory_mb=_smallest(settings.memory_mb),
        timeout_s=math.nan if settings.timeout_s is None else float(settings.timeout_s),
    )


def _model_name(settings: Settings) -> str:
    """Of a model that may not have been loaded."""
    group = settings.raw["model"]
    return str(group.get("name") or group.get("path") or settings.model.name)


def _smallest(memory_mb: float | list[float] | None) -> float:
    """One number a row; the device table has each device's own."""
    if memory_mb is None:
        return math.nan
    return float(min(memory_mb) if isinstance(memory_mb, list) else memory_mb)


def _ended(started: str, outcome: Outcome) -> Ended:
    return Ended(
        started=started,
        status=outcome.status,
        error=outcome.error,
        wall_s=outcome.wall_s,
        num_events=outcome.num_events,
    )


def _notes(system: System, job: Job, generation: Generation | None) -> str:
    found = "" if generation is None else generation.note
    return "; ".join(note for note in (system.note(job), found) if note)


def _circumstances(settings: Settings, job: Job, outcome: Outcome) -> Circumstances:
    machines = settings.testbed.machines(job)
    counted = None if outcome.generation is None else outcome.generation.prompt_tokens
    return Circumstances(
        hidden=job.config.hidden,
        prompt_tokens=len(job.request.prompt_ids) if counted is None else counted,
        prefill_chunk=job.request.prefill_chunk,
        num_tokens_asked=job.request.num_new_tokens,
        threads_per_device=job.threads_per_device,
        pinned=job.cpus is not None,
        cores=len(available_cpus()),
        devices_share_cores=machines.share_cores,
        device=settings.system.place(job) or machines.names,
        kernel=next((device.kernel for device in outcome.devices if device.rank == 0), None),
        cores_per_device=machines.cores_per_device,
    )


def _links(job: Job, outcome: Outcome) -> Links:
    trips = [ns / 1e9 for ns in outcome.round_trips_ns]
    return Links(
        asked_round_trip_s=2 * job.network.one_way_ns / 1e9 if job.num_devices > 1 else math.nan,
        link_round_trip_s=statistics.median(trips) if trips else math.nan,
        link_round_trip_min_s=min(trips, default=math.nan),
        tls=job.network.tls if job.num_devices > 1 else None,
        bytes_sent=_all_sent(outcome.devices),
    )


def _all_sent(devices: Sequence[DeviceReport]) -> int | None:
    sent = [device.bytes_sent for device in devices if device.bytes_sent is not None]
    return sum(sent) if sent and len(sent) == len(devices) else None


def _how_it_was_read(cached: PageCache, job: Job, devices: Sequence[DeviceReport]) -> PageCache:
    modes = {device.read_mode for device in devices} - {"none"}
    unread = "unknown" if job.blocks else f"files of a library, {cached.cache} at the start"
    return PageCache(
        cache=cached.cache,
        cached_bytes_start=cached.cached_bytes_start,
        large_free_bytes=cached.large_free_bytes,
        page_cache=", ".join(sorted(modes)) or unread,
    )


def _plan_cells(system: System, job: Job, rank: int) -> dict[str, float]:
    """What a device keeps and streams of its blocks; not known where others decide it."""
    plan = system.streaming(job, rank) if job.blocks else None
    if plan is None or plan.is_paged:
        return dict.fromkeys(("kept_bytes", "streamed_bytes", "window_bytes"), math.nan)
    return {
        "kept_bytes": plan.kept_bytes,
        "streamed_bytes": plan.streamed_bytes,
        "window_bytes": plan.area_bytes,
    }


def _memory(outcome: Outcome, plans: Sequence[dict[str, float]]) -> Memory:
    devices = outcome.devices
    return Memory(
        peak_anon_bytes=max((d.peak_anon_bytes for d in devices), default=math.nan),
        peak_file_bytes=max((d.peak_file_bytes for d in devices), default=math.nan),
        memory_cap=outcome.memory_cap,
        peak_cgroup_bytes=outcome.peak_cgroup_bytes,
        pss_interval_s=outcome.pss_interval_s,
        ledger_bytes=max((sum(d.ledger_bytes.values()) for d in devices), default=math.nan),
        **{name: max(plan[name] for plan in plans) for name in plans[0]},
    )


def _device_row(device: DeviceReport, plan: dict[str, float]) -> DeviceRow:
    cells = {name: value for name, value in vars(device).items() if name != "spans"} | plan
    return DeviceRow(**(cells | {"ledger_bytes": sum(device.ledger_bytes.values())}))
