"""Jobs whose block files are nowhere: only their sizes matter, for tests of plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.helpers.models_zoo import prompt_of
from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.contract.system import Streaming, System
from tpi_bench.engine.budget import other_bytes
from tpi_bench.engine.look_up import look_up_bytes
from tpi_bench.engine.streaming import WindowedSystem
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.models.block_layout import planned_blocks

SMALL = ModelConfig(
    num_layers=6,
    hidden=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate=320,
    vocab=500,
    context_length=512,
)
TINYLLAMA = ModelConfig(
    num_layers=22,
    hidden=2048,
    num_heads=32,
    num_kv_heads=4,
    head_dim=64,
    intermediate=5632,
    vocab=32000,
    context_length=2048,
)
LLAMA2_70B = ModelConfig(
    num_layers=80,
    hidden=8192,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    intermediate=28672,
    vocab=32000,
    context_length=4096,
)


def planned_job(
    config: ModelConfig = SMALL,
    *,
    system: System | None = None,
    num_devices: int = 1,
    weights: str = "float32",
    num_prompt: int = 8,
    is_tied: bool = False,
    **extra: Any,
) -> Job:
    """A job of TPI unless told otherwise, as the virtual testbed gets it."""
    config = replace(config, tied_embeddings=is_tied)
    system = system or TpiSystem(window="auto")
    plan = system.plan(
        config, Site(proportions=[1.0] * num_devices, weights=weights, num_positions=16)
    )
    assert plan is not None
    request = extra.pop("request", None)
    return Job(
        program=system,
        config=config,
        dtype="float32",
        weights=weights,
        num_devices=num_devices,
        plan=plan,
        blocks=planned_blocks(config, plan, weights, "float32"),
        request=request or Request(prompt_ids=prompt_of(num_prompt), num_new_tokens=8),
        network=NetworkConfig(),
        threads_per_device=1,
        **extra,
    )


def all_bytes(blocks: list[BlockFile]) -> int:
    """Of different files."""
    return sum({block.path: block.nbytes for block in blocks}.values())


def with_room(job: Job, room: float) -> Job:
    """With memory for so many bytes of weights on each device."""
    memory = (room + max(other_bytes(job, rank) for rank in range(job.num_devices))) * 64 / 63
    return replace(job, free_bytes=(round(memory),) * job.num_devices)


def plan_of(job: Job, room: float, rank: int = 0, **settings: Any) -> Streaming:
    system = job.program
    assert isinstance(system, WindowedSystem)
    return replace(system, **settings).streaming(with_room(job, room), rank)


def held_bytes(job: Job, plan: Streaming, rank: int = 0) -> int:
    """What the ledger would say of weights."""
    block = job.blocks[rank][0]
    is_looked_up = plan.kept[0] is None and plan.streamed[0] is None
    rows = look_up_bytes(block, len(job.request.prompt_ids)) if is_looked_up else 0
    return plan.kept_bytes + plan.area_bytes + rows
