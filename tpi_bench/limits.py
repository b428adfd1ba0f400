"""What a token of a point costs at least: bytes over measured or profiled rates, and round trips.

Every speed in the results stands beside this. See `theory.token_limit_s` for the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tpi_bench import theory
from tpi_bench.helper import in_helper
from tpi_bench.job import Job, Outcome
from tpi_bench.page_cache import opened_files
from tpi_bench.plans import place_blocks
from tpi_bench.probe import HostLimits, last_level_cache_bytes, measure_limits
from tpi_bench.processes import available_cpus
from tpi_bench.system import LibrarySystem, System
from tpi_bench.weights import PAGE, BlockFile
from tpi_bench.window import resident_indices

_PROBED_BYTES = 32 << 20  # of a library's file


def limits_of_host(system: System, job: Job) -> HostLimits | None:
    """What this host can do right now; virtual devices have their profiles."""
    if job.devices:
        return None
    return in_helper(measure_limits, len(available_cpus()), _streamed_files(system, job))


def point_limits(
    system: System, job: Job, outcome: Outcome, limits: HostLimits | None, testbed: Any
) -> dict[str, float]:
    """The limit columns of a run row."""
    generation = outcome.generation
    sizes = _token_bytes(system, job, len(generation.token_ids) if generation else 2)
    one_way_s = min(outcome.round_trips_ns, default=0) / 2e9
    if job.num_devices > 1 and (job.network.is_emulated or job.devices):
        one_way_s = job.network.one_way_ns / 1e9
    network_s = system.sync_steps(job) * one_way_s
    is_tensor = job.plan is not None and job.plan.scheme == "tensor"
    if limits is None:
        memory_bps = [device.memory_bps for device in job.devices]
        disk_bps = [device.disk_bps for device in job.devices]
        times = theory.own_rates(sizes, memory_bps, disk_bps, is_tensor=is_tensor)
        if testbed.shares_disk:
            disk_s = sum(size.streamed for size in sizes) / disk_bps[0]
            times = replace(times, disk_s=disk_s)
    else:
        memory_bps, disk_bps = [limits.memory_bps], [limits.disk_bps]
        cached = 2 * last_level_cache_bytes()
        times = theory.shared_rates(
            sizes, limits.memory_bps, limits.disk_bps, is_tensor=is_tensor, cache_bytes=cached
        )
    return {
        "memory_bps": min(memory_bps),
        "disk_bps": min(disk_bps),
        "limit_memory_s": times.memory_s,
        "limit_disk_s": times.disk_s,
        "limit_network_s": network_s,
        "limit_token_s": theory.token_limit_s(times, network_s),
    }


def _token_bytes(system: System, job: Job, num_tokens: int) -> list[theory.TokenBytes]:
    """Of each device, a token after the first of `num_tokens`.

    A look-up in the embedding touches a row and counts as nothing.
    """
    if isinstance(system, LibrarySystem):
        touched = system.token_weight_bytes(job)
        streamed = max(0, touched - _memory_of(job, 0))
        return [theory.TokenBytes(layers=touched, head=0, streamed=round(streamed))]
    if not job.blocks:
        return [theory.TokenBytes(layers=0, head=0, streamed=0)] * job.num_devices
    return [
        _device_bytes(system, blocks, _memory_of(job, rank), num_tokens)
        for rank, blocks in enumerate(job.blocks)
    ]


def _device_bytes(
    system: System, blocks: Sequence[BlockFile], memory_bytes: float, num_tokens: int
) -> theory.TokenBytes:
    window = system.window_config()
    resident = resident_indices(blocks, window)
    sizes = [block.nbytes for i, block in enumerate(blocks) if i not in resident]
    ahead = place_blocks(sizes, window.size or 0)[1] if sizes else 0
    # What lies in the window at the first token is not read during the later ones.
    streamed = sum(sizes) - ahead / max(1, num_tokens - 1)
    layers = sum(block.weight_bytes for block in blocks if block.layer >= 0)
    head = sum(block.weight_bytes for block in blocks if block.kind == "output")
    # Of a cyclic scan with a fixed resident set, all but that set is read: nothing does better.
    streamed = max(streamed, layers + head - memory_bytes)
    return theory.TokenBytes(layers=layers, head=head, streamed=max(0, round(streamed)))


def _memory_of(job: Job, rank: int) -> float:
    """A device's memory where it is known."""
    if job.devices:
        return job.devices[rank].memory_bytes
    return job.memory_bytes[rank] if job.memory_bytes else float("inf")


def _streamed_files(system: System, job: Job) -> list[BlockFile]:
    """Files that tokens are read from, for measuring the disk; none where all are in memory."""
    window = system.window_config()
    if not job.blocks:
        files = [_as_block(path) for path in opened_files(job)] if job.memory_bytes else []
        return [file for file in files if file.nbytes >= _PROBED_BYTES // 2]
    streamed = []
    for blocks in job.blocks:
        resident = resident_indices(blocks, window)
        is_short = job.memory_bytes is not None
        streamed += [block for i, block in enumerate(blocks) if i not in resident or is_short]
    return streamed


def _as_block(path: str) -> BlockFile:
    """The beginning of a library's file as something to read."""
    size = min(Path(path).stat().st_size // PAGE * PAGE, _PROBED_BYTES)
    return BlockFile(
        path=path, kind="file", layer=-1, dtype="uint8", data_offset=0, nbytes=size, tensors={}
    )
