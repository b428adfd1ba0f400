"""Block files of a plan, made in the cache where they are missing."""

from __future__ import annotations

from pathlib import Path

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.model import Model
from tpi_bench.contract.plan import Plan
from tpi_bench.host.fork import in_helper
from tpi_bench.models.block_files import rank_blocks
from tpi_bench.models.sharder import find_shards, shard, shard_folder


def blocks_there(model: Model, plan: Plan, cache_dir: Path) -> list[list[BlockFile]]:
    """Every rank's block files where they have been made, else none."""
    folder = shard_folder(cache_dir, model.checkpoint, plan, model.weights, model.dtype)
    manifest, bad = find_shards(folder)
    if manifest is None or bad:
        return []
    return [rank_blocks(folder, manifest, rank) for rank in range(plan.num_devices)]


def made_blocks(model: Model, plan: Plan, cache_dir: Path) -> list[list[BlockFile]]:
    """Every rank's block files. Raises ValueError where they do not stay as written."""
    weights, dtype = model.weights, model.dtype
    folder = shard_folder(cache_dir, model.checkpoint, plan, weights, dtype)
    manifest, bad = find_shards(folder)
    if manifest is None or bad:
        in_helper(shard, folder, model.checkpoint, plan, weights, dtype)
        manifest, bad = find_shards(folder)
    if manifest is None or bad:
        raise ValueError(
            f"the block files in {folder} do not stay as written: {bad or 'no manifest'}"
        )
    return [rank_blocks(folder, manifest, rank) for rank in range(plan.num_devices)]
