"""One point from settings to a record: prepare, measure limits, run the devices, make the rows."""

from __future__ import annotations

import datetime
import functools
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tpi_bench import cache, metrics, page_cache, text
from tpi_bench.calibrate import ThisHost
from tpi_bench.config import Settings
from tpi_bench.helper import in_helper
from tpi_bench.job import Job, Outcome
from tpi_bench.limits import limits_of_host, point_limits
from tpi_bench.links import VIRTUAL_ONLY
from tpi_bench.memory import resident_bytes
from tpi_bench.models import BYTES_PER_VALUE
from tpi_bench.oracle import compare_with_oracle
from tpi_bench.plans import Site
from tpi_bench.probe import HostLimits
from tpi_bench.processes import available_cpus
from tpi_bench.profiles import DeviceProfile, device_names, devices_for
from tpi_bench.provenance import provenance
from tpi_bench.sharder import find_shards, shard, shard_folder
from tpi_bench.sources import Model
from tpi_bench.weights import BlockFile, planned_blocks, rank_blocks
from tpi_bench.workload import make_request

_PLANNED_SHARE = 0.95  # of a device's memory


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A point that is ready to run: files are on the disk, every value is checked."""

    settings: Settings
    model: Model
    job: Job


def prepare(settings: Settings) -> Prepared:
    """Check everything and make what is missing on the disk.

    Raises ValueError; starts no device.
    """
    cache_dir = cache.cache_folder(settings.cache_dir)
    num_devices = settings.num_devices
    _check_testbed(settings)
    devices: list[DeviceProfile] = []
    if settings.testbed.clock == "virtual":
        loaded = [d.load(cache_dir) if hasattr(d, "load") else d for d in settings.devices]
        devices = devices_for(loaded, num_devices)
    memory_bytes = settings.memory_bytes
    if memory_bytes and devices:
        caps = zip(devices, memory_bytes, strict=True)
        devices = [replace(device, memory_gb=nbytes / 1e9) for device, nbytes in caps]
    shares = settings.shares(devices)
    threads = settings.system.num_threads(settings.testbed.threads(num_devices))
    cpus = settings.testbed.cpus(num_devices, threads)
    model = _load_model(settings.model, cache_dir)
    request = make_request(
        settings.workload,
        _prompt_ids(settings, model),
        vocab=model.config.vocab,
        context_length=model.config.context_length,
        eos_ids=model.config.eos_ids,
        keep_logits=settings.check,
    )
    site = Site(
        proportions=shares,
        devices=_planned_devices(settings, devices, cache_dir),
        memory_bytes=_rooms(tuple(d.memory_bytes for d in devices), memory_bytes),
        network=settings.network,
        bytes_per_value=BYTES_PER_VALUE[model.dtype],
        num_positions=request.length,
    )
    plan = settings.system.plan(model.config, site)
    blocks: list[list[BlockFile]] = []
    if plan is not None and settings.testbed.cost == "modelled":
        blocks = planned_blocks(model.config, plan, model.dtype)
    elif plan is not None:
        blocks = _block_files(cache_dir, model, plan)
    files = settings.system.files(model, cache_dir)
    job = Job(
        program=settings.system,
        config=model.config,
        dtype=model.dtype,
        num_devices=num_devices,
        plan=plan,
        blocks=blocks,
        request=request,
        network=settings.network,
        threads_per_device=threads,
        devices=tuple(devices),
        cpus=cpus,
        memory_bytes=memory_bytes,
        timeout_s=settings.timeout_s,
        files=None if files is None else str(files),
        trace=settings.testbed.trace,
    )
    return Prepared(settings=settings, model=model, job=job)


def _planned_devices(
    settings: Settings, devices: list[DeviceProfile], cache_dir: Path
) -> tuple[DeviceProfile, ...]:
    """What a planner is told of the devices; on this host, all are as this host was calibrated."""
    if devices or not settings.system.needs_profiles:
        return tuple(devices)
    threads = settings.testbed.threads(settings.num_devices)
    return (ThisHost(threads=threads).load(cache_dir),) * settings.num_devices


def _rooms(
    virtual_bytes: tuple[int, ...], capped_bytes: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """What a planner may fill of each device's memory, less what a device of this host begins with.

    Some is left for hidden states and for heads that cannot be cut.
    """
    if not virtual_bytes and capped_bytes is None:
        return None
    base = 0 if virtual_bytes else round(in_helper(resident_bytes)[0])
    return tuple(
        round(_PLANNED_SHARE * max(0, memory - base))
        for memory in virtual_bytes or capped_bytes or ()
    )


def _check_testbed(settings: Settings) -> None:
    """Raises ValueError for what the testbed cannot do."""
    if settings.testbed.clock == "virtual" and settings.system.stand_in:
        raise ValueError(
            f"system={settings.system.name} runs a real library, which knows no virtual time; its "
            f"stand-in there is {settings.system.stand_in}"
        )
    if settings.testbed.cost == "modelled" and settings.check:
        raise ValueError(
            "check=true needs real tokens, and testbed.cost=modelled has none; use "
            "testbed.cost=measured or testbed=processes"
        )
    topology = settings.network.topology
    if settings.testbed.clock == "wall" and topology in VIRTUAL_ONLY:
        raise ValueError(
            f"network.topology={topology} exists in virtual time only; use testbed=virtual, or "
            "network=switch or network=paper"
        )


def describe(prepared: Prepared) -> str:
    """What is about to run, in one line."""
    job, settings = prepared.job, prepared.settings
    links = f"{job.network.topology} network, {job.network.link_latency_ms:g} ms a hop"
    if job.devices:
        return (
            f"{settings.system.name}: {prepared.model.name} on {device_names(job.devices)}, "
            f"{settings.testbed.cost} cost, virtual time ({links})"
        )
    share = (
        ""
        if job.num_devices * job.threads_per_device <= len(available_cpus())
        else ", sharing cores"
    )
    return (
        f"{settings.system.name}: {prepared.model.name} on {job.num_devices} device"
        f"{'s' if job.num_devices > 1 else ''} "
        f"({job.threads_per_device} threads each{share}; "
        f"{links if job.num_devices > 1 else 'no network'})"
    )


@functools.lru_cache
def _load_model(source: Any, cache_dir: Path) -> Model:
    """Once a sweep: the headers of a checkpoint do not change between its points."""
    return source.load(cache_dir)


def _prompt_ids(settings: Settings, model: Model) -> tuple[int, ...]:
    workload = settings.workload
    if workload.prompt_ids is not None:
        return tuple(workload.prompt_ids)
    if workload.prompt_tokens is not None:
        return tuple(1 + 37 * i % (model.config.vocab - 1) for i in range(workload.prompt_tokens))
    if model.folder is None:
        raise ValueError(
            f"model={model.name} has random weights and no tokenizer; give "
            "workload.prompt_ids=[1,2,3] or workload.prompt_tokens=32"
        )
    return text.encode_prompt(model.folder, workload.prompt or "", workload.chat)


def _block_files(cache_dir: Path, model: Model, plan: Any) -> list[list[BlockFile]]:
    folder = shard_folder(cache_dir, model.checkpoint, plan, model.dtype)
    manifest, bad = find_shards(folder)
    if manifest is None or bad:
        in_helper(shard, folder, model.checkpoint, plan, model.dtype)
        manifest, bad = find_shards(folder)
    if manifest is None or bad:
        raise ValueError(
            f"the block files in {folder} do not stay as written: {bad or 'no manifest'}"
        )
    return [rank_blocks(folder, manifest, rank) for rank in range(plan.num_devices)]


def measure(prepared: Prepared, on_token: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Run the point and make its record. A device that fails gives a record that says so."""
    job, settings = prepared.job, prepared.settings
    started = datetime.datetime.now(datetime.UTC).isoformat()
    limits = limits_of_host(settings.system, job)
    checked: dict[str, Any] = {}
    job = replace(job, stream=on_token is not None)
    cache_dir = cache.cache_folder(settings.cache_dir)
    found = _page_cache(prepared)
    if settings.check:
        with tempfile.TemporaryDirectory(prefix="tpi_bench-") as scratch:
            job = replace(job, logits_path=str(Path(scratch) / "logits.pt"))
            outcome = settings.testbed.run(job, on_token, cache_dir)
            if outcome.status == "ok" and outcome.generation and outcome.generation.token_ids:
                checked = compare_with_oracle(prepared.settings, prepared.model, job, outcome)
    else:
        outcome = settings.testbed.run(job, on_token, cache_dir)
    generation = outcome.generation
    if outcome.status == "ok" and (generation is None or not generation.token_ids):
        outcome.status, outcome.error = "error", "rank 0 generated no token"
    checked |= found
    record = _record(prepared, outcome, limits, started, checked)
    if limits is not None and _beats_its_limit(record):  # the host was busy then, and is less now
        again = limits_of_host(settings.system, job)
        assert again is not None
        record = _record(prepared, outcome, limits.best(again), started, checked)
    return record


def _page_cache(prepared: Prepared) -> dict[str, Any]:
    """Drop the point's files from the page cache if asked to; columns that say what it held."""
    if prepared.job.devices:
        return {"cache": "virtual", "cached_bytes_start": math.nan}
    said, cached = page_cache.begin(prepared.job, prepared.settings.cache)
    return {"cache": said, "cached_bytes_start": cached}


def _beats_its_limit(record: dict[str, Any]) -> bool:
    run = record["run"]
    return bool(run["status"] == "ok" and run["token_latency_s"] < run["limit_token_s"])


def failure_record(settings: Settings, error: str) -> dict[str, Any]:
    """The record of a point that could not be prepared or run."""
    started = datetime.datetime.now(datetime.UTC).isoformat()
    run = _identity(settings) | {"started": started, "status": "error", "error": error}
    return {"run": run | provenance(), "tokens": [], "devices": []}


def _identity(settings: Settings) -> dict[str, Any]:
    system, network = settings.raw["system"], settings.network
    return {
        "experiment": settings.name,
        "point": settings.point,
        "config_hash": settings.config_hash,
        "repeat": settings.repeat,
        "system": settings.system.name,
        **{f"system_{k}": str(v) for k, v in system.items() if k not in ("_target_", "name")},
        "model": settings.raw["model"].get("name")
        or settings.raw["model"].get("path")
        or "smollm2_135m",
        "dtype": settings.system.compute_dtype(settings.raw["model"]["dtype"]),
        "num_devices": settings.num_devices,
        "topology": network.topology,
        "link_latency_ms": network.link_latency_ms,
        "jitter_ms": network.jitter_ms,
        "bandwidth_mbps": network.bandwidth_mbps,
        "clock": settings.testbed.clock,
        "cost": settings.testbed.cost,
        "memory_mb": _smallest(settings.memory_mb),
        "timeout_s": math.nan if settings.timeout_s is None else float(settings.timeout_s),
    }


def _smallest(memory_mb: float | list[float] | None) -> float:
    """One number a row; the device table has each device's own."""
    if memory_mb is None:
        return math.nan
    return float(min(memory_mb) if isinstance(memory_mb, list) else memory_mb)


def _record(
    prepared: Prepared,
    outcome: Outcome,
    limits: HostLimits | None,
    started: str,
    checked: dict[str, Any],
) -> dict[str, Any]:
    settings, job = prepared.settings, prepared.job
    cores = len(available_cpus())
    is_virtual = bool(job.devices)
    run = _identity(settings) | {
        "started": started,
        "status": outcome.status,
        "error": outcome.error,
        "model": prepared.model.name,
        "hidden": job.config.hidden,
        "prompt_tokens": len(job.request.prompt_ids),
        "num_tokens_asked": job.request.num_new_tokens,
        "threads_per_device": job.threads_per_device,
        "pinned": job.cpus is not None,
        "cores": cores,
        "devices_share_cores": not is_virtual and job.num_devices * job.threads_per_device > cores,
        "device": device_names(job.devices) if is_virtual else "this host",
        "cores_per_device": job.devices[0].num_used if is_virtual else math.nan,
    }
    generation = outcome.generation
    if generation is not None and outcome.status == "ok":
        run |= metrics.summarise(generation)
    run |= point_limits(settings.system, job, outcome, limits, settings.testbed)
    run |= _round_trip(job, outcome) | checked | provenance()
    modes = {device.read_mode for device in outcome.devices} - {"none"}
    unread = "unknown" if job.blocks else f"files of a library, {run['cache']} at the start"
    run["page_cache"] = ", ".join(sorted(modes)) or unread
    for name in ("peak_anon_bytes", "peak_file_bytes"):
        run[name] = max((getattr(d, name) for d in outcome.devices), default=math.nan)
    names = ("memory_cap", "peak_cgroup_bytes", "pss_interval_s", "wall_s")
    run |= {name: getattr(outcome, name) for name in names}
    ledgers = [sum(device.ledger_bytes.values()) for device in outcome.devices]
    run["ledger_bytes"] = max(ledgers, default=math.nan)
    run["num_events"] = outcome.num_events
    devices = [asdict(d) for d in sorted(outcome.devices, key=lambda d: d.rank)]
    fields = ("kind", "key", "start_ns", "end_ns")
    spans = [
        {"rank": device["rank"]} | dict(zip(fields, span, strict=True))
        for device in devices
        for span in device.pop("spans")
    ]
    for device in devices:
        device["ledger_bytes"] = sum(device["ledger_bytes"].values())
    tokens = metrics.token_rows(generation) if generation is not None else []
    return {
        "run": run,
        "tokens": tokens,
        "devices": devices,
        "spans": spans,
        "config": settings.raw,
    }


def _round_trip(job: Job, outcome: Outcome) -> dict[str, float]:
    """Asked and measured round trip between the master and a worker, an empty message each way."""
    trips = [ns / 1e9 for ns in outcome.round_trips_ns]
    return {
        "asked_round_trip_s": 2 * job.network.one_way_ns / 1e9 if job.num_devices > 1 else math.nan,
        "link_round_trip_s": statistics.median(trips) if trips else math.nan,
        "link_round_trip_min_s": min(trips, default=math.nan),
    }
