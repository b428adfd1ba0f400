"""A point planned: its job before any file is made, from the settings and the model's headers.

`prepare.py` makes it true on the disk; `fits.py` plans it anew with other settings, to see whether
they would fit.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import BYTES_PER_VALUE, Model, ModelSource
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Request, make_request
from tpi_bench.host import cache
from tpi_bench.measure.calibrate import ThisHost
from tpi_bench.measure.drafts import draft_job
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.texts import read_text
from tpi_bench.models.block_layout import planned_blocks
from tpi_bench.models.tokenizer import encode_prompt
from tpi_bench.virtual.network import transfers_s

_PLANNED_SHARE = 0.95  # of a device's memory: the rest is for hidden states and heads left whole


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What the point's devices are and may use."""

    shares: list[float]
    threads: int
    cpus: list[list[int]] | None
    memory_bytes: tuple[int, ...] | None
    profiles: tuple[DeviceProfile, ...]
    host: DeviceProfile | None
    free_bytes: tuple[int, ...] | None


def planned_job(settings: Settings, model: Model, request: Request, devices: Devices) -> Job:
    """The job with the sizes of its blocks, but not their files. Raises ValueError."""
    system = settings.system
    plan = system.plan(model.config, _site(settings, devices, model, request))
    job = Job(
        program=system,
        config=model.config,
        dtype=model.dtype,
        weights=model.weights,
        num_devices=settings.num_devices,
        plan=plan,
        blocks=_planned(model, plan if system.reads_blocks else None),
        request=request,
        network=settings.network,
        threads_per_device=devices.threads,
        profiles=devices.profiles,
        host=devices.host,
        cpus=devices.cpus,
        memory_bytes=devices.memory_bytes,
        free_bytes=devices.free_bytes,
        timeout_s=settings.timeout_s,
        trace=settings.testbed.trace,
    )
    if settings.draft is None:
        return job
    try:
        drafter = load_model(settings.draft, cache.cache_folder(settings.cache_dir))
    except ValueError as error:
        raise ValueError(f"workload.draft_model: {error}") from error
    named = f"{drafter.name} in {drafter.weights}"
    return replace(job, draft=draft_job(job, model, drafter), draft_name=named)


def devices_of(settings: Settings, cache_dir: Path) -> Devices:
    """Profiles, caps, threads and shares; this host is calibrated where somebody must know it."""
    testbed, num_devices = settings.testbed, settings.num_devices
    memory_bytes = settings.memory_bytes
    profiles = testbed.profiles(settings.profiles, num_devices, memory_bytes, cache_dir)
    shares = settings.shares(profiles)
    offered = testbed.threads(num_devices)
    threads = settings.system.num_threads(offered)
    asked = settings.system.needs_profiles and not profiles
    host = ThisHost(threads=offered) if asked or testbed.needs_host(profiles) else None
    return Devices(
        shares=shares,
        threads=threads,
        cpus=testbed.cpus(num_devices, threads),
        memory_bytes=memory_bytes,
        profiles=profiles,
        host=None if host is None else host.load(cache_dir),
        free_bytes=testbed.free_bytes(profiles, memory_bytes),
    )


@functools.lru_cache
def load_model(source: ModelSource, cache_dir: Path) -> Model:
    """Once a sweep: the headers of a checkpoint do not change between its points."""
    return source.load(cache_dir)


def request_of(settings: Settings, model: Model) -> Request:
    return make_request(
        settings.workload,
        prompt_ids(settings, model),
        vocab=model.config.vocab,
        context_length=model.config.context_length,
        eos_ids=model.config.eos_ids,
        keep_logits=settings.check,
    )


def prompt_ids(settings: Settings, model: Model) -> tuple[int, ...]:
    """The tokens that the point begins with. Raises ValueError where there is no telling."""
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
    if workload.text is not None:
        return encode_prompt(model.folder, read_text(workload.text), False)
    return encode_prompt(model.folder, workload.prompt or "", workload.chat)


def _site(
    settings: Settings,
    devices: Devices,
    model: Model,
    request: Request,
) -> Site:
    """What a planner may know."""
    num_devices, free_bytes = settings.num_devices, devices.free_bytes
    same = (devices.host,) * num_devices if devices.host is not None else ()
    return Site(
        proportions=devices.shares,
        profiles=devices.profiles or same,
        memory_bytes=free_bytes
        and tuple(round(_PLANNED_SHARE * max(0, free)) for free in free_bytes),
        bytes_per_value=BYTES_PER_VALUE[model.dtype],
        weights=model.weights,
        num_positions=request.length,
        transfers_s=functools.partial(transfers_s, settings.network, num_devices),
    )


def _planned(model: Model, plan: Plan | None) -> list[list[BlockFile]]:
    """Every rank's blocks without the files: their sizes are known at once."""
    if plan is None:
        return []
    held_in = model.checkpoint.held_in
    return planned_blocks(model.config, plan, model.weights, model.dtype, held_in)
