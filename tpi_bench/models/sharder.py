"""From a checkpoint and a plan to block files in the cache (TPI-LLM, section 3.1).

The sharder streams: it reads a few rows at a time and never holds more than one chunk, so its
memory does not grow with the model. `shard` runs in a process of its own; `find_shards`, which the
launcher asks first, needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tpi_bench.contract.model import Checkpoint
from tpi_bench.contract.plan import Plan, Shard
from tpi_bench.host import cache
from tpi_bench.models.block_files import (
    FileEntry,
    Manifest,
    damaged_files,
    manifest_entry,
    write_block,
)
from tpi_bench.models.block_layout import FORMAT_VERSION, Layout, Slice, block_tensors, layout_of
from tpi_bench.models.checkpoints import CHUNK_BYTES
from tpi_bench.models.quantised import held_rows, packed_rows, unpack

_WEIGHTS_OF_ELEMENTS = {"int8": "q8", "uint8": "q4"}
_NOTED_EVERY_S = 1.0  # of files that are whole
_MUCH_BYTES = 2e9  # takes a disk some seconds, and room that people miss


def shard_folder(
    cache_dir: Path, checkpoint: Checkpoint, plan: Plan, weights: str, dtype: str
) -> Path:
    """The folder of this checkpoint's block files under this plan, weights and dtype."""
    key = {
        "format": FORMAT_VERSION,
        "checkpoint": checkpoint.identity,
        "plan": plan.as_dict(),
        "weights": weights,
        "dtype": dtype,
    }
    return shard_folders(cache_dir) / cache.digest(key)


def shard_folders(cache_dir: Path) -> Path:
    """Where the folders of all block files are."""
    return cache_dir / "shards"


def find_shards(folder: Path) -> tuple[Manifest | None, dict[str, str]]:
    """The manifest in `folder`, if there is one, and the damaged files with the reason."""
    path = folder / "manifest.json"
    try:
        manifest: Manifest = json.loads(path.read_text())
        before = json.dumps(manifest)
        bad = damaged_files(folder, manifest)
    except FileNotFoundError:
        return None, {}
    except (ValueError, KeyError, TypeError) as error:
        return None, {path.name: f"is not a manifest ({error})"}
    if not bad and json.dumps(manifest) != before:
        with contextlib.suppress(OSError):  # of a read-only cache all is looked at each time
            cache.write_json(path, manifest)
    return manifest, bad


def shard(folder: Path, checkpoint: Checkpoint, plan: Plan, weights: str, dtype: str) -> None:
    """Make `folder` hold every block file of the plan; whole files that are there are kept.

    Matrices are held in `weights` (see `Checkpoint.held_in`), vectors in `dtype`.
    """
    with cache.locked(folder):
        manifest, bad = find_shards(folder)
        if manifest is None or manifest["complete"]:
            for name, reason in bad.items():
                print(f"{folder / name} {reason}; it is made again", file=sys.stderr)
        if manifest is not None and not bad:
            return
        kept = {} if manifest is None else manifest["files"]
        kept = {name: entry for name, entry in kept.items() if name not in bad}
        with cache.explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write_missing(folder, checkpoint, plan, weights, dtype, kept)


def _write_missing(
    folder: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    weights: str,
    dtype: str,
    kept: dict[str, FileEntry],
) -> None:
    """Write the plan's files that are not among the `kept`, and the manifest of all."""
    ranks, shards = _name_files(checkpoint, plan)
    whole = checkpoint.config.tensor_shapes()
    layouts = {
        name: layout_of(
            block_tensors(checkpoint.config, shard), whole, weights, dtype, checkpoint.held_in
        )
        for name, shard in shards.items()
        if name not in kept
    }
    total = sum(layouts[name].block(shards[name], name).weight_bytes for name in layouts)
    cache.require_space(folder, total + (1 << 20), "dividing the model over the devices")
    if total > _MUCH_BYTES and not sys.stderr.isatty():  # where no bar is shown
        print(f"writing {total / 1e9:.1f} GB of block files to {folder}, once", file=sys.stderr)

    def note() -> None:  # a build that is stopped, or killed, goes on from here
        manifest: Manifest = {"complete": len(kept) == len(shards), "files": kept, "ranks": ranks}
        cache.write_json(folder / "manifest.json", manifest)

    noted_s = time.monotonic()
    with cache.progress(total, f"writing {len(layouts)} block files") as bar:
        try:
            for name, layout in layouts.items():
                path = folder / name
                kept[name] = _write_file(
                    path, checkpoint, shards[name], layout, weights, bar.update
                )
                if time.monotonic() - noted_s > _NOTED_EVERY_S:
                    note()
                    noted_s = time.monotonic()
        finally:
            note()


def _name_files(
    checkpoint: Checkpoint, plan: Plan
) -> tuple[list[list[tuple[str, int, str]]], dict[str, Shard]]:
    """For each rank its (kind, layer, file name), and what each file holds."""
    ranks = []
    shards: dict[str, Shard] = {}
    for rank, own in enumerate(plan.shards):
        entries: list[tuple[str, int, str]] = []
        first_layer = min((shard.layer for shard in own if shard.layer >= 0), default=0)
        for shard in own:
            layer = min(shard.layer, first_layer) if checkpoint.share_layers else shard.layer
            name = f"rank{rank}.{shard.kind}_{layer}" if layer >= 0 else f"rank{rank}.{shard.kind}"
            if layer < 0 and checkpoint.config.tied_embeddings:
                name = f"rank{rank}.embedding"
            name += ".safetensors"
            shards.setdefault(name, shard)  # with shared layers, the first stands for all
            entries.append((shard.kind, shard.layer, name))
        ranks.append(entries)
    return ranks, shards


def _write_file(
    path: Path,
    checkpoint: Checkpoint,
    shard: Shard,
    layout: Layout,
    weights: str,
    progress: Callable[[int], object],
) -> FileEntry:
    tensors = block_tensors(checkpoint.config, shard)

    def pieces() -> Iterator[tuple[int, memoryview]]:
        for name, view in layout.tensors.items():
            if name not in tensors:
                continue  # scales are made with their numbers
            offset = view.begin
            scales = []
            for piece in _chunks(checkpoint, tensors[name]):
                numbers, scale = _as_stored(checkpoint, piece, weights, view.dtype)
                yield offset, numbers
                offset += len(numbers)
                scales.append(scale)
            if scale_view := layout.tensors.get(f"{name}.scales"):
                yield scale_view.begin, memoryview(b"".join(scales))

    crc = write_block(path, layout, pieces(), progress)
    return manifest_entry(layout.block(shard, str(path)), crc)


def _chunks(checkpoint: Checkpoint, slices: Sequence[Slice]) -> Iterator[Slice]:
    """The slices, a few rows at a time."""
    shapes = checkpoint.config.tensor_shapes()
    for piece in slices:
        step = max(1, CHUNK_BYTES // (math.prod(shapes[piece.name][1:]) * 4))
        start, stop = piece.rows
        for first in range(start, stop, step):
            yield replace(piece, rows=(first, min(stop, first + step)))


def _as_stored(
    checkpoint: Checkpoint, piece: Slice, weights: str, stored: str
) -> tuple[memoryview, memoryview]:
    """The bytes of rows whose elements are `stored`, and of their scales, if they have any."""
    import torch

    if kind := _WEIGHTS_OF_ELEMENTS.get(stored):
        packed = packed_rows(checkpoint, piece.name, piece.rows, kind, piece.cols)
        numbers, scales = unpack(packed, kind)
        return numbers.reshape(-1).view("u1").data, scales.reshape(-1).view("u1").data
    is_vector = len(checkpoint.config.tensor_shapes()[piece.name]) == 1
    held = stored if is_vector else checkpoint.held_in(piece.name, weights)
    rows = held_rows(checkpoint, piece.name, piece.rows, held, piece.cols)
    rows = rows.to(getattr(torch, stored)).contiguous()
    return rows.view(-1).view(torch.uint8).numpy().data, memoryview(b"")
