"""Block files: one safetensors file a block a device, laid out for direct I/O, and their manifest.

The data section starts at a multiple of 4096 bytes and is a multiple of 4096 long, every tensor is
64-byte aligned (padding is a tensor of its own, so the file stays valid safetensors), and Q, K, V
and gate, up lie together, so a block is one read and two products. `sharder.py` writes them; the
runtimes read them; the manifest (a JSON file) holds shapes, offsets and CRC-32 checksums.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.models import BYTES_PER_VALUE, ModelConfig
from tpi_bench.plans import Plan, Range, Shard

if TYPE_CHECKING:
    import torch

PAGE = 4096
TENSOR_ALIGNMENT = 64
FORMAT_VERSION = 1
SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Slice:
    """Rows (and columns) of one checkpoint tensor; `cols` None means all."""

    name: str
    rows: Range
    cols: Range | None = None


@dataclass(frozen=True)
class TensorView:
    """Where a tensor lies in a block's data: `begin` bytes after the start of the data section."""

    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True, kw_only=True)
class BlockFile:
    """A block of one device as it is read: `nbytes` from `data_offset` on, a multiple of 4096."""

    path: str
    kind: str
    layer: int
    dtype: str
    data_offset: int
    nbytes: int
    tensors: dict[str, TensorView]

    @property
    def key(self) -> str:
        return self.kind if self.layer < 0 else f"{self.kind}_{self.layer}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights without padding."""
        return sum(math.prod(t.shape) for t in self.tensors.values()) * BYTES_PER_VALUE[self.dtype]


def block_tensors(config: ModelConfig, shard: Shard) -> dict[str, list[Slice]]:
    """The tensors of a shard's file; each is the row-wise concatenation of checkpoint slices.

    attn: norm (h,), qkv ((a + 2 b) d, h), o (h, a d); ffn: norm (h,), gate_up (2 c, h), down (h,
    c); input: embedding (v, h); output: norm (h,), head (v, h), where a, b, c are the shard's
    heads, KV heads and columns. Tied models keep embedding and norm in one file that serves both
    ends.
    """
    h, d = config.hidden, config.head_dim
    at = f"model.layers.{shard.layer}."
    if shard.kind in ("input", "output"):
        norm = [Slice("model.norm.weight", (0, h))]
        embedding = [Slice("model.embed_tokens.weight", (0, config.vocab))]
        if config.tied_embeddings:
            return {"embedding": embedding, "norm": norm}
        if shard.kind == "input":
            return {"embedding": embedding}
        return {"head": [Slice("lm_head.weight", (0, config.vocab))], "norm": norm}
    if shard.kind == "attn":
        q = (shard.heads[0] * d, shard.heads[1] * d)
        kv = (shard.kv_heads[0] * d, shard.kv_heads[1] * d)
        parts = [(f"{at}self_attn.{n}_proj", rows) for n, rows in (("q", q), ("k", kv), ("v", kv))]
        tensors = {
            "qkv": [Slice(f"{name}.weight", rows) for name, rows in parts],
            "o": [Slice(f"{at}self_attn.o_proj.weight", (0, h), q)],
            "norm": [Slice(f"{at}input_layernorm.weight", (0, h))],
        }
        if config.qkv_bias:
            tensors["qkv_bias"] = [Slice(f"{name}.bias", rows) for name, rows in parts]
        if config.o_bias and shard.adds_bias:
            tensors["o_bias"] = [Slice(f"{at}self_attn.o_proj.bias", (0, h))]
        return tensors
    names = [f"{at}mlp.gate_proj", f"{at}mlp.up_proj"]
    tensors = {
        "gate_up": [Slice(f"{name}.weight", shard.columns) for name in names],
        "down": [Slice(f"{at}mlp.down_proj.weight", (0, h), shard.columns)],
        "norm": [Slice(f"{at}post_attention_layernorm.weight", (0, h))],
    }
    if config.mlp_bias:
        tensors["gate_up_bias"] = [Slice(f"{name}.bias", shard.columns) for name in names]
        if shard.adds_bias:
            tensors["down_bias"] = [Slice(f"{at}mlp.down_proj.bias", (0, h))]
    return tensors


def tensor_shape(
    slices: Sequence[Slice], config_shapes: dict[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Shape of the concatenation of `slices`."""
    rows = sum(s.rows[1] - s.rows[0] for s in slices)
    whole = config_shapes[slices[0].name]
    if len(whole) == 1:
        return (rows,)
    cols = slices[0].cols
    return (rows, cols[1] - cols[0] if cols else whole[1])


def layout(
    shapes: dict[str, tuple[int, ...]], dtype: str
) -> tuple[bytes, dict[str, TensorView], int]:
    """The safetensors header (with its length field), the tensors' places, the data's length."""
    header: dict[str, Any] = {}
    views: dict[str, TensorView] = {}
    position = 0

    def pad_to(multiple: int) -> None:
        nonlocal position
        gap = -position % multiple
        if gap:
            entry = {"dtype": "U8", "shape": [gap], "data_offsets": [position, position + gap]}
            header[f"padding_{position}"] = entry
            position += gap

    for name, shape in shapes.items():
        pad_to(TENSOR_ALIGNMENT)
        nbytes = math.prod(shape) * BYTES_PER_VALUE[dtype]
        offsets = [position, position + nbytes]
        header[name] = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": offsets,
        }
        views[name] = TensorView(shape, position)
        position += nbytes
    pad_to(PAGE)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text, views, position


def planned_blocks(config: ModelConfig, plan: Plan, dtype: str) -> list[list[BlockFile]]:
    """The blocks of every rank as `sharder.py` would write them, without the files."""
    shapes = config.tensor_shapes()
    layouts: dict[Shard, tuple[int, dict[str, TensorView], int]] = {}

    def block(shard: Shard) -> BlockFile:
        layer = min(shard.layer, 0)  # all layers are alike
        like = replace(shard, layer=layer)
        if like not in layouts:
            tensors = block_tensors(config, like)
            header, views, nbytes = layout(
                {name: tensor_shape(slices, shapes) for name, slices in tensors.items()}, dtype
            )
            layouts[like] = (len(header), views, nbytes)
        data_offset, views, nbytes = layouts[like]
        is_shared = config.tied_embeddings and shard.kind in ("input", "output")
        return BlockFile(
            path="planned:ends" if is_shared else f"planned:{shard.kind}_{shard.layer}",
            kind=shard.kind,
            layer=shard.layer,
            dtype=dtype,
            data_offset=data_offset,
            nbytes=nbytes,
            tensors=views,
        )

    return [[block(shard) for shard in shards] for shards in plan.shards]


def write_block(
    path: Path,
    header: bytes,
    data: Iterator[tuple[int, Any]],
    nbytes: int,
    progress: Callable[[int], object],
) -> int:
    """Write one block file under a temporary name and rename it; returns the file's CRC-32.

    `data` yields (offset in the data section, contiguous bytes-like) in rising order. The pages are
    flushed and dropped, so that a first read comes from the disk and not from memory.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            crc, position = zlib.crc32(header), 0
            for offset, chunk in data:
                padding = bytes(offset - position)
                for piece in (padding, chunk):
                    file.write(piece)
                    crc = zlib.crc32(piece, crc)
                position = offset + len(chunk)
                progress(len(chunk))
            tail = bytes(nbytes - position)
            file.write(tail)
            crc = zlib.crc32(tail, crc)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return crc


def file_crc(path: Path) -> int:
    """CRC-32 of a whole file, read in pieces."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            crc = zlib.crc32(piece, crc)
    return crc


def file_stamp(path: Path) -> list[int]:
    """Size and times of a file: while they stay, its bytes are taken to stay."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def manifest_entry(block: BlockFile, crc: int) -> dict[str, Any]:
    """What the manifest keeps of one file."""
    entry = asdict(block)
    path = Path(entry.pop("path"))
    return entry | {"crc32": crc, "stamp": file_stamp(path)}


def damaged_files(folder: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """Files that are not what the manifest says, with the reason. Refreshes stamps of moved ones.

    Only files whose size or times changed are read again; a changed time with the right checksum
    (a restored backup, a copy) is not damage.
    """
    named = {name for blocks in manifest["ranks"] for _, _, name in blocks}
    bad = dict.fromkeys(sorted(named - manifest["files"].keys()), "is missing")
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            bad[name] = "is missing"
            continue
        stamp = file_stamp(path)
        if stamp == entry["stamp"]:
            continue
        if stamp[0] != entry["stamp"][0]:
            bad[name] = f"is truncated or extended ({stamp[0]} bytes, not {entry['stamp'][0]})"
        elif file_crc(path) != entry["crc32"]:
            bad[name] = "was altered (its checksum is wrong)"
        else:
            entry["stamp"] = stamp
    return bad


def rank_blocks(folder: Path, manifest: dict[str, Any], rank: int) -> list[BlockFile]:
    """The blocks of one rank, in execution order; shared layers name one file many times."""
    blocks = []
    for kind, layer, name in manifest["ranks"][rank]:
        entry = manifest["files"][name]
        tensors = {
            n: TensorView(tuple(t["shape"]), t["begin"]) for n, t in entry["tensors"].items()
        }
        blocks.append(
            BlockFile(
                path=str(folder / name),
                kind=kind,
                layer=layer,
                dtype=entry["dtype"],
                data_offset=entry["data_offset"],
                nbytes=entry["nbytes"],
                tensors=tensors,
            )
        )
    return blocks


def tensor_views(block: BlockFile, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """The block's tensors as views of `data` (uint8, at least `block.nbytes` long). No copy."""
    import torch

    dtype = getattr(torch, block.dtype)
    views = {}
    for name, view in block.tensors.items():
        nbytes = math.prod(view.shape) * BYTES_PER_VALUE[block.dtype]
        views[name] = data[view.begin : view.begin + nbytes].view(dtype).view(view.shape)
    return views
