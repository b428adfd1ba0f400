"""A point made ready: everything is checked and on the disk before a device starts.

`prepare` is the first half of the story of a point; `point.measure` is the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tpi_bench.contract.job import Job
from tpi_bench.contract.model import Model
from tpi_bench.host import cache
from tpi_bench.measure.blocks import made_blocks
from tpi_bench.measure.drafts import draft_plan, refuse_speculation
from tpi_bench.measure.fits import advice, refuse_too_little
from tpi_bench.measure.planned import devices_of, load_model, planned_job, request_of
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.texts import refuse_text


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
    system, testbed = settings.system, settings.testbed
    refuse_unfit(settings)
    model, job = _planned(settings, cache_dir)
    if job.plan is not None and testbed.opens_files and system.reads_blocks:
        job = replace(job, blocks=made_blocks(model, job.plan, cache_dir))
    path = system.checkpoint_path(model, cache_dir)
    job = replace(job, checkpoint_path=None if path is None else str(path))
    system.look(job)
    job = _with_draft_files(settings, job, cache_dir)
    job = testbed.placed(job, cache_dir)
    return Prepared(settings=settings, model=model, job=job)


def refuse_early(settings: Settings) -> None:
    """What is wrong with a point, before it waits for its turn to measure. Raises ValueError.

    Where this host must be known for it, the rest is left to `prepare`, which measures it.
    """
    refuse_unfit(settings)
    if not settings.system.needs_profiles and settings.testbed.cost != "measured":
        _planned(settings, cache.cache_folder(settings.cache_dir))


def refuse_unfit(settings: Settings) -> None:
    """What the settings alone say cannot be run, without a file of the model. Raises ValueError."""
    refuse_text(settings)
    refuse_speculation(settings)
    _ = settings.memory_bytes  # raises for a list of another length
    if isinstance(settings.testbed.proportions, list):
        settings.shares(())
    if settings.network.tls and not settings.testbed.encrypts:
        raise ValueError(
            "network.tls=true encrypts what machines of a cluster send each other; leave it out, "
            "or use testbed=cluster"
        )
    reads_text = settings.workload.text is not None
    needs_tokens = settings.check or reads_text
    settings.testbed.check(settings.system, settings.network, needs_tokens=needs_tokens)


def _planned(settings: Settings, cache_dir: Path) -> tuple[Model, Job]:
    """The model and the job, which fits as far as can be said, without its files."""
    devices = devices_of(settings, cache_dir)
    model = load_model(settings.model, cache_dir)
    request = request_of(settings, model)
    job = planned_job(settings, model, request, devices)
    refuse_too_little(settings, model, job, devices)
    for rank in range(len(job.blocks)):
        settings.system.streaming(job, rank)  # raises where a device's memory is too small
    return model, job


def _with_draft_files(settings: Settings, job: Job, cache_dir: Path) -> Job:
    """The files of the model that drafts, if there is one."""
    if settings.draft is None or job.draft is None or not settings.testbed.opens_files:
        return job
    model = load_model(settings.draft, cache_dir)
    if job.plan is not None and settings.system.reads_blocks:
        files = replace(job.draft, blocks=made_blocks(model, draft_plan(model), cache_dir))
    else:
        path = settings.system.draft_path(model, cache_dir)
        files = replace(job.draft, checkpoint_path=None if path is None else str(path))
    return replace(job, draft=files)


def advice_after(prepared: Prepared) -> str:
    """What to do when a device has run out of memory."""
    settings = prepared.settings
    devices = devices_of(settings, cache.cache_folder(settings.cache_dir))
    return advice(settings, prepared.model, prepared.job, devices)


def describe(prepared: Prepared) -> str:
    """What is about to run, in one line."""
    settings = prepared.settings
    where = settings.system.place(prepared.job) or settings.testbed.where(prepared.job)
    model = prepared.model
    return f"{settings.system.name}: {model.name} in {model.weights} on {where}"
