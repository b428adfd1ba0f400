"""Run a system on a checkpoint in real device processes, as the application does, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.model import Checkpoint, Model
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.models.block_files import rank_blocks
from tpi_bench.models.checkpoints import FolderCheckpoint
from tpi_bench.models.hf_config import read_config
from tpi_bench.models.sharder import find_shards, shard, shard_folder
from tpi_bench.processes.launcher import run_job


def checkpoint_of(source: Path | Checkpoint) -> Checkpoint:
    """That of a Hugging Face folder."""
    return FolderCheckpoint(source, read_config(source)) if isinstance(source, Path) else source


def model_of(source: Path | Checkpoint, weights: str = "float32", dtype: str = "float32") -> Model:
    """As a source of the `model` group would give it."""
    checkpoint = checkpoint_of(source)
    folder = getattr(checkpoint, "folder", None)
    return Model(name="tiny", checkpoint=checkpoint, dtype=dtype, weights=weights, folder=folder)


def make_job(
    system: Any,
    source: Path | Checkpoint,
    cache_dir: Path,
    *,
    num_devices: int,
    request: Request,
    network: NetworkConfig | None = None,
    proportions: list[float] | None = None,
    weights: str = "float32",
    dtype: str = "float32",
    **extra: Any,
) -> Job:
    """A job with its block files made, of a Hugging Face folder or another checkpoint."""
    checkpoint = checkpoint_of(source)
    config = checkpoint.config
    site = Site(proportions=proportions or [1.0] * num_devices, weights=weights)
    plan = system.plan(config, site)
    blocks = []
    if plan is not None and system.reads_blocks:
        target = shard_folder(cache_dir, checkpoint, plan, weights, dtype)
        shard(target, checkpoint, plan, weights, dtype)
        manifest, bad = find_shards(target)
        assert manifest is not None
        assert not bad
        blocks = [rank_blocks(target, manifest, rank) for rank in range(num_devices)]
    return Job(
        program=system,
        config=config,
        dtype=dtype,
        weights=weights,
        num_devices=num_devices,
        plan=plan,
        blocks=blocks,
        request=request,
        network=network or NetworkConfig(),
        threads_per_device=1,
        checkpoint_path=str(source) if isinstance(source, Path) else None,
        **extra,
    )


def run_ok(job: Job) -> Outcome:
    """Run a job that is expected to succeed."""
    outcome = run_job(job)
    assert outcome.status == "ok", outcome.error
    assert outcome.generation is not None
    return outcome
