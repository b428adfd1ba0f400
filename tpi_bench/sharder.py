"""From a checkpoint and a plan to block files in the cache (TPI-LLM, section 3.1).

The sharder streams: it reads a few rows at a time and never holds more than one chunk, so its
memory does not grow with the model. It runs in a process of its own; `find_shards` needs no torch.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tpi_bench import cache
from tpi_bench.checkpoints import CHUNK_BYTES, Checkpoint
from tpi_bench.models import BYTES_PER_VALUE
from tpi_bench.plans import Plan, Shard
from tpi_bench.weights import (
    FORMAT_VERSION,
    BlockFile,
    Slice,
    block_tensors,
    damaged_files,
    layout,
    manifest_entry,
    tensor_shape,
    write_block,
)


def shard_folder(cache_dir: Path, checkpoint: Checkpoint, plan: Plan, dtype: str) -> Path:
    """The folder of this checkpoint's block files under this plan and dtype."""
    key = {
        "format": FORMAT_VERSION,
        "checkpoint": checkpoint.identity,
        "plan": plan.as_dict(),
        "dtype": dtype,
    }
    return cache_dir / "shards" / cache.digest(key)


def find_shards(folder: Path) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """The manifest in `folder`, if there is one, and the damaged files with the reason."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        before = json.dumps(manifest)
        bad = damaged_files(folder, manifest)
    except FileNotFoundError:
        return None, {}
    except (ValueError, KeyError, TypeError) as error:
        return None, {path.name: f"is not a manifest ({error})"}
    if not bad and json.dumps(manifest) != before:
        with cache.explain_write_errors(folder):
            cache.write_json(path, manifest)
    return manifest, bad


def shard(folder: Path, checkpoint: Checkpoint, plan: Plan, dtype: str) -> None:
    """Make `folder` hold every block file of the plan; whole files that are there are kept."""
    with cache.locked(folder):
        manifest, bad = find_shards(folder)
        if manifest is None or manifest["complete"]:
            for name, reason in bad.items():
                print(f"{folder / name} {reason}; it is made again", file=sys.stderr)
        if manifest is not None and not bad:
            return
        with cache.explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write_missing(folder, checkpoint, plan, dtype, manifest, bad)


def _write_missing(
    folder: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    dtype: str,
    manifest: dict[str, Any] | None,
    bad: dict[str, str],
) -> None:
    ranks, shards = _name_files(checkpoint, plan)
    kept = {} if manifest is None else {n: e for n, e in manifest["files"].items() if n not in bad}
    missing = {name: shard for name, shard in shards.items() if name not in kept}
    total = sum(_data_bytes(checkpoint, shard, dtype) for shard in missing.values())
    cache.require_space(folder, total + (1 << 20), "dividing the model over the devices")
    with cache.progress(total, f"writing {len(missing)} block files") as bar:
        try:
            for name, shard in missing.items():
                kept[name] = _write_shard(folder / name, checkpoint, shard, dtype, bar)
        finally:  # a build that is stopped goes on from here
            is_complete = len(kept) == len(shards)
            manifest = {"complete": is_complete, "dtype": dtype, "files": kept, "ranks": ranks}
            cache.write_json(folder / "manifest.json", manifest)


def _name_files(checkpoint: Checkpoint, plan: Plan) -> tuple[list[Any], dict[str, Shard]]:
    """For each rank its (kind, layer, file name), and what each file holds."""
    share_layers = getattr(checkpoint, "share_layers", False)
    ranks: list[Any] = []
    shards: dict[str, Shard] = {}
    for rank, own in enumerate(plan.shards):
        entries = []
        first_layer = min((shard.layer for shard in own if shard.layer >= 0), default=0)
        for shard in own:
            layer = min(shard.layer, first_layer) if share_layers else shard.layer
            name = f"rank{rank}.{shard.kind}_{layer}" if layer >= 0 else f"rank{rank}.{shard.kind}"
            if layer < 0 and checkpoint.config.tied_embeddings:
                name = f"rank{rank}.embedding"
            name += ".safetensors"
            shards.setdefault(name, shard)  # with shared layers, the first stands for all
            entries.append([shard.kind, shard.layer, name])
        ranks.append(entries)
    return ranks, shards


def _shapes(checkpoint: Checkpoint, shard: Shard) -> dict[str, tuple[int, ...]]:
    whole = checkpoint.config.tensor_shapes()
    return {n: tensor_shape(s, whole) for n, s in block_tensors(checkpoint.config, shard).items()}


def _data_bytes(checkpoint: Checkpoint, shard: Shard, dtype: str) -> int:
    return sum(math.prod(s) for s in _shapes(checkpoint, shard).values()) * BYTES_PER_VALUE[dtype]


def _write_shard(
    path: Path, checkpoint: Checkpoint, shard: Shard, dtype: str, bar: tqdm[Any]
) -> dict[str, Any]:
    header, views, nbytes = layout(_shapes(checkpoint, shard), dtype)
    tensors = block_tensors(checkpoint.config, shard)

    def pieces() -> Iterator[tuple[int, Any]]:
        for name, slices in tensors.items():
            offset = views[name].begin
            for piece in slices:
                for chunk in _chunks(checkpoint, piece, dtype):
                    yield offset, chunk
                    offset += len(chunk)

    crc = write_block(path, header, pieces(), nbytes, lambda count: bar.update(count))
    block = BlockFile(
        path=str(path),
        kind=shard.kind,
        layer=shard.layer,
        dtype=dtype,
        data_offset=len(header),
        nbytes=nbytes,
        tensors=views,
    )
    return manifest_entry(block, crc)


def _chunks(checkpoint: Checkpoint, piece: Slice, dtype: str) -> Iterator[memoryview]:
    """The bytes of a slice in `dtype`, a few rows at a time."""
    import torch

    whole = checkpoint.config.tensor_shapes()[piece.name]
    row_bytes = math.prod(whole[1:]) * 4
    rows_per_chunk = max(1, CHUNK_BYTES // row_bytes)
    start, stop = piece.rows
    for first in range(start, stop, rows_per_chunk):
        rows = checkpoint.read_rows(piece.name, first, min(stop, first + rows_per_chunk))
        if piece.cols is not None:
            rows = rows[:, piece.cols[0] : piece.cols[1]]
        rows = rows.to(getattr(torch, dtype)).contiguous()
        yield memoryview(rows.view(-1).view(torch.uint8).numpy())
