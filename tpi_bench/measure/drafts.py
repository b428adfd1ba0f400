"""A point that speculates: what cannot be, and the job of its draft model, if it has one."""

from __future__ import annotations

from dataclasses import replace

from tpi_bench.contract.job import Job
from tpi_bench.contract.model import Model
from tpi_bench.contract.plan import Plan
from tpi_bench.engine.plans import tensor_parallel
from tpi_bench.measure.settings import Settings
from tpi_bench.models.block_layout import planned_blocks


def refuse_speculation(settings: Settings) -> None:
    """Raises ValueError where the system or the testbed cannot do what was asked."""
    workload, system, testbed = settings.workload, settings.system, settings.testbed
    kind = workload.speculation
    if kind == "none":
        return
    if kind not in system.speculations:
        others = [name for name in system.speculations if name != "none"]
        known = f"which knows {' and '.join(others)} alone" if others else "which gives one a pass"
        raise ValueError(
            f"workload.speculation={kind} with system={system.name}, {known}; use tpi, pipeline, "
            "mmap, blocking, edgeshard, galaxy, prima or dllama"
        )
    if system.max_devices == 1 and workload.prefill_chunk is not None:
        raise ValueError(
            f"workload.prefill_chunk with workload.speculation={kind} and system={system.name}, "
            "which takes the prompt whole then; leave out one of them"
        )
    is_unreal = testbed.cost == "modelled"
    if is_unreal and workload.acceptance is None:
        raise ValueError(
            f"workload.speculation={kind} with testbed.cost=modelled, where no token is real; say "
            "how many of the drafted ones are right, as workload.acceptance=0.7, or take "
            "testbed.cost=measured or testbed=processes"
        )
    if not is_unreal and workload.acceptance is not None:
        raise ValueError(
            f"workload.acceptance={workload.acceptance} is for testbed.cost=modelled; here drafted "
            "tokens are real, and how many are right is measured: leave it out"
        )
    if testbed.cost == "measured" and getattr(testbed, "interval", False):
        raise ValueError(
            f"testbed.interval=true with workload.speculation={kind} and testbed.cost=measured: "
            "its other runs have no real tokens; leave out one of them"
        )


def draft_job(job: Job, target: Model, model: Model) -> Job:
    """One device's, of the model that drafts for `job`. Raises ValueError where it cannot."""
    config, own = model.config, target.config
    if config.vocab != own.vocab:
        raise ValueError(
            f"workload.draft_model={model.name} has a vocabulary of {config.vocab} tokens, and "
            f"model={target.name} one of {own.vocab}; a draft model must have the same"
        )
    if config.context_length < job.request.length:
        raise ValueError(
            f"workload.draft_model={model.name} has a context of {config.context_length}, and "
            f"prompt and answer take {job.request.length} positions; shorten one of them"
        )
    plan = draft_plan(model)
    held_in = model.checkpoint.held_in
    blocks = planned_blocks(config, plan, model.weights, model.dtype, held_in)
    return replace(
        job,
        config=config,
        dtype=model.dtype,
        weights=model.weights,
        num_devices=1,
        plan=plan,
        blocks=blocks if job.blocks else [],  # a library's are its own matter
        memory_bytes=job.memory_bytes and job.memory_bytes[:1],
        free_bytes=job.free_bytes and job.free_bytes[:1],
        profiles=job.profiles[:1],
        checkpoint_path=None,
        draft=None,
    )


def draft_plan(model: Model) -> Plan:
    """All of it on the master."""
    return tensor_parallel(model.config, [1.0])
