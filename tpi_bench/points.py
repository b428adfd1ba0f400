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

from tpi_bench import cache, metrics, text, theory
from tpi_bench.config import Settings
from tpi_bench.helper import in_helper
from tpi_bench.job import Job, Outcome
from tpi_bench.models import BYTES_PER_VALUE
from tpi_bench.oracle import compare_with_oracle
from tpi_bench.plans import check_proportions
from tpi_bench.probe import HostLimits, last_level_cache_bytes, measure_limits
from tpi_bench.processes import available_cpus, run_job
from tpi_bench.provenance import provenance
from tpi_bench.sharder import find_shards, shard, shard_folder
from tpi_bench.sources import Model, hugging_face_folder
from tpi_bench.weights import BlockFile, rank_blocks
from tpi_bench.window import resident_indices
from tpi_bench.workload import make_request


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
    proportions = settings.testbed.proportions if num_devices > 1 else None
    shares = check_proportions(num_devices, proportions)
    cpus = settings.testbed.cpus(num_devices)
    model = _load_model(settings.model, cache_dir)
    plan = settings.system.plan(model.config, shares)
    request = make_request(
        settings.workload,
        _prompt_ids(settings, model),
        vocab=model.config.vocab,
        context_length=model.config.context_length,
        eos_ids=model.config.eos_ids,
        keep_logits=settings.check,
    )
    blocks: list[list[BlockFile]] = []
    folder = model.folder
    if plan is not None:
        blocks = _block_files(cache_dir, model, plan)
    elif settings.system.reads_checkpoint:
        folder = hugging_face_folder(model, cache_dir)
    job = Job(
        program=settings.system,
        config=model.config,
        dtype=model.dtype,
        num_devices=num_devices,
        plan=plan,
        blocks=blocks,
        request=request,
        network=settings.network,
        threads_per_device=settings.testbed.threads(num_devices),
        cpus=cpus,
        model_folder=None if folder is None else str(folder),
        trace=settings.testbed.trace,
    )
    return Prepared(settings=settings, model=model, job=job)


def describe(prepared: Prepared) -> str:
    """What is about to run, in one line."""
    job, settings = prepared.job, prepared.settings
    share = (
        ""
        if job.num_devices * job.threads_per_device <= len(available_cpus())
        else ", sharing cores"
    )
    links = f"{job.network.topology} network, {job.network.link_latency_ms:g} ms a hop"
    return (
        f"{settings.system.name}: {prepared.model.name} on {job.num_devices} devices "
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
    if model.folder is None:
        raise ValueError(
            f"model={model.name} has random weights and no tokenizer; give "
            "workload.prompt_ids=[1,2,3]"
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
    limits = in_helper(measure_limits, len(available_cpus()), _streamed_blocks(prepared))
    checked: dict[str, Any] = {}
    if settings.check:
        with tempfile.TemporaryDirectory(prefix="tpi_bench-") as scratch:
            logits = str(Path(scratch) / "logits.pt")
            job = replace(job, logits_path=logits, stream=on_token is not None)
            outcome = run_job(job, on_token)
            if outcome.status == "ok":
                checked = compare_with_oracle(prepared.settings, prepared.model, job, outcome)
    else:
        outcome = run_job(replace(job, stream=on_token is not None), on_token)
    return _record(prepared, outcome, limits, started, checked)


def failure_record(settings: Settings, error: Exception) -> dict[str, Any]:
    """The record of a point that could not be prepared."""
    started = datetime.datetime.now(datetime.UTC).isoformat()
    run = _identity(settings) | {"started": started, "status": "error", "error": str(error)}
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
        "dtype": settings.raw["model"]["dtype"],
        "num_devices": settings.num_devices,
        "topology": network.topology,
        "link_latency_ms": network.link_latency_ms,
        "jitter_ms": network.jitter_ms,
        "bandwidth_mbps": network.bandwidth_mbps,
        "clock": "wall",
        "cost": "real",
    }


def _record(
    prepared: Prepared, outcome: Outcome, limits: HostLimits, started: str, checked: dict[str, Any]
) -> dict[str, Any]:
    settings, job = prepared.settings, prepared.job
    cores = len(available_cpus())
    run = _identity(settings) | {
        "started": started,
        "status": outcome.status,
        "error": outcome.error,
        "model": prepared.model.name,
        "prompt_tokens": len(job.request.prompt_ids),
        "num_tokens_asked": job.request.num_new_tokens,
        "threads_per_device": job.threads_per_device,
        "pinned": job.cpus is not None,
        "cores": cores,
        "devices_share_cores": job.num_devices * job.threads_per_device > cores,
    }
    generation = outcome.generation
    if generation is not None and outcome.status == "ok":
        run |= metrics.summarise(generation)
    run |= _round_trip(job, outcome) | _limits(prepared, outcome, limits) | checked | provenance()
    modes = {device.read_mode for device in outcome.devices} - {"none"}
    unread = "unknown" if job.blocks else "warm (weights mapped from files)"
    run["page_cache"] = ", ".join(sorted(modes)) or unread
    run["peak_anon_bytes"] = max((d.peak_anon_bytes for d in outcome.devices), default=math.nan)
    devices = [asdict(d) for d in sorted(outcome.devices, key=lambda d: d.rank)]
    names = ("kind", "key", "start_ns", "end_ns")
    spans = [
        {"rank": device["rank"]} | dict(zip(names, span, strict=True))
        for device in devices
        for span in device.pop("spans")
    ]
    for device in devices:
        device["ledger_bytes"] = sum(device["ledger_bytes"].values())
        device["peak_cgroup_bytes"] = math.nan
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


def _limits(prepared: Prepared, outcome: Outcome, limits: HostLimits) -> dict[str, float]:
    """What a token costs at least on this host, for this system. See `theory.token_limit_s`."""
    job = prepared.job
    size = _token_bytes(prepared)
    fits_in_cache = size.touched < 2 * last_level_cache_bytes()
    memory_s = math.nan if fits_in_cache else size.touched / limits.memory_bps
    critical_s = 0.0 if fits_in_cache else size.critical / limits.memory_bps
    disk_s = size.streamed / limits.disk_bps if size.streamed else 0.0
    one_way_s = min(outcome.round_trips_ns, default=0) / 2e9
    if job.network.is_emulated and job.num_devices > 1:
        one_way_s = job.network.one_way_ns / 1e9
    network_s = prepared.settings.system.sync_steps(job.config, job.num_devices) * one_way_s
    return {
        "memory_bps": limits.memory_bps,
        "disk_bps": limits.disk_bps,
        "limit_memory_s": memory_s,
        "limit_disk_s": disk_s,
        "limit_network_s": network_s,
        "limit_token_s": theory.token_limit_s(
            memory_s=0.0 if fits_in_cache else memory_s,
            critical_memory_s=critical_s,
            network_s=network_s,
            disk_s=disk_s,
        ),
    }


@dataclass(frozen=True)
class TokenBytes:
    """Weight bytes of one token: touched in memory by all, one after another, and off the disk."""

    touched: int
    critical: int
    streamed: int


def _token_bytes(prepared: Prepared) -> TokenBytes:
    """An embedding look-up touches a row and counts as nothing; the head is touched whole."""
    job = prepared.job
    config = job.config
    if not job.blocks:
        size = BYTES_PER_VALUE[job.dtype]
        shapes = config.tensor_shapes()
        values = sum(rows * (cols[0] if cols else 1) for rows, *cols in shapes.values())
        if not config.tied_embeddings:
            values -= config.vocab * config.hidden
        return TokenBytes(values * size, values * size, 0)
    assert job.plan is not None
    streamed = sum(block.nbytes for block in _streamed_blocks(prepared))
    layers, head = [], 0
    for blocks in job.blocks:
        layers.append(sum(block.weight_bytes for block in blocks if block.layer >= 0))
        head += sum(block.weight_bytes for block in blocks if block.kind == "output")
    in_turn = max(layers) if job.plan.scheme == "tensor" else sum(layers)
    return TokenBytes(sum(layers) + head, in_turn + head, streamed)


def _streamed_blocks(prepared: Prepared) -> list[BlockFile]:
    """The blocks of all devices that every token reads from the disk."""
    window = prepared.settings.system.window_config()
    streamed = []
    for blocks in prepared.job.blocks:
        resident = resident_indices(blocks, window)
        streamed += [block for i, block in enumerate(blocks) if i not in resident]
    return streamed
