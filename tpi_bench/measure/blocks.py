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
    return _found(_folder(model, plan, cache_dir), plan)[0]


def made_blocks(model: Model, plan: Plan, cache_dir: Path) -> list[list[BlockFile]]:
    """Every rank's block files. Raises ValueError where they do not stay as written."""
    folder = _folder(model, plan, cache_dir)
    blocks, _ = _found(folder, plan)
    if not blocks:
        in_helper(shard, folder, model.checkpoint, plan, model.weights, model.dtype)
        blocks, bad = _found(folder, plan)
        if not blocks:
            raise ValueError(
                f"the block files in {folder} do not stay as written: {bad or 'no manifest'}"
            )
    return blocks


def _folder(model: Model, plan: Plan, cache_dir: Path) -> Path:
    return shard_folder(cache_dir, model.checkpoint, plan, model.weights, model.dtype)


def _found(folder: Path, plan: Plan) -> tuple[list[list[BlockFile]], dict[str, str]]:
    """Those that are there and whole, and else what is wrong with them."""
    manifest, bad = find_shards(folder)
    if manifest is None or bad:
        return [], bad
    return [rank_blocks(folder, manifest, rank) for rank in range(plan.num_devices)], bad
