"""What lies where in a block file: one safetensors file a block a device, laid out for direct I/O.

The data section starts at a multiple of 4096 bytes and is a multiple of 4096 long, and so does
every tensor that is a page or more (padding is a tensor of its own, so the file stays valid
safetensors). Q, K, V and gate, up lie together, so a block is one read and two products. Tensors
come in order of their size: what a device keeps of a block, smallest first, is the beginning. The
sharder writes files of this layout; the virtual testbed needs only `planned_blocks`, without the
files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tpi_bench.contract.blocks import PAGE, BlockFile, TensorView
from tpi_bench.contract.model import GROUP, QUANTISED, ModelConfig
from tpi_bench.contract.plan import Plan, Range, Shard
from tpi_bench.models.checkpoints import SAFETENSORS_NAMES

FORMAT_VERSION = 2
TENSOR_ALIGNMENT = 64

Shape = tuple[int, ...]
HeldIn = Callable[[str, str], str]  # (name, weights) -> type: `Checkpoint.held_in`


@dataclass(frozen=True)
class Slice:
    """Rows (and columns) of one checkpoint tensor; `cols` None means all."""

    name: str
    rows: Range
    cols: Range | None = None


Tensors = dict[str, list[Slice]]  # each the row-wise concatenation of checkpoint slices


def block_tensors(config: ModelConfig, shard: Shard) -> Tensors:
    """The tensors of a shard's file."""
    if shard.kind == "attn":
        return _attention_tensors(config, shard)
    if shard.kind == "ffn":
        return _ffn_tensors(config, shard)
    return _end_tensors(config, shard)


def _end_tensors(config: ModelConfig, shard: Shard) -> Tensors:
    """input: embedding (v, h); output: head (v, h), norm (h,).

    Tied models keep embedding and norm in one file that serves both ends.
    """
    norm = [Slice("model.norm.weight", (0, config.hidden))]
    embedding = [Slice("model.embed_tokens.weight", (0, config.vocab))]
    if config.tied_embeddings:
        return {"embedding": embedding, "norm": norm}
    if shard.kind == "input":
        return {"embedding": embedding}
    return {"head": [Slice("lm_head.weight", (0, config.vocab))], "norm": norm}


def _attention_tensors(config: ModelConfig, shard: Shard) -> Tensors:
    """qkv ((a + 2 b) d, h), o (h, a d), norm (h,) of the shard's a heads and b KV heads."""
    h, d = config.hidden, config.head_dim
    at = f"model.layers.{shard.layer}."
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


def _ffn_tensors(config: ModelConfig, shard: Shard) -> Tensors:
    """gate_up (2 c, h), down (h, c), norm (h,) of the shard's c columns."""
    h = config.hidden
    at = f"model.layers.{shard.layer}."
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


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A block file without its values.

    The safetensors header (with its length field), where the tensors lie in the data section behind
    it, and how long that is.
    """

    header: bytes
    tensors: dict[str, TensorView]
    nbytes: int

    def block(self, shard: Shard, path: str) -> BlockFile:
        """The file at `path` that holds `shard` in this layout."""
        return BlockFile(
            path=path,
            kind=shard.kind,
            layer=shard.layer,
            data_offset=len(self.header),
            nbytes=self.nbytes,
            tensors=self.tensors,
        )


def layout_of(
    tensors: Tensors,
    whole: Mapping[str, Shape],
    weights: str,
    dtype: str,
    held_in: HeldIn | None = None,
) -> Layout:
    """The layout of a file with `tensors`, of a checkpoint with tensors of the shapes `whole`.

    Matrices are held in `weights`, or what the checkpoint's `held_in` says, vectors in `dtype`.
    """
    header: dict[str, dict[str, object]] = {}
    views: dict[str, TensorView] = {}
    position = 0

    def add(name: str, kind: str, shape: Shape, nbytes: int) -> None:
        nonlocal position
        offsets = [position, position + nbytes]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": offsets}
        position += nbytes

    def pad_to(multiple: int) -> None:
        if gap := -position % multiple:
            add(f"padding_{position}", "U8", (gap,), gap)

    shapes = {name: _shape(slices, whole) for name, slices in tensors.items()}
    for tensor in sorted(shapes, key=lambda name: math.prod(shapes[name])):
        kind = weights if held_in is None else _widest(tensors[tensor], weights, held_in)
        for name, view in _stored(tensor, shapes[tensor], kind, dtype):
            pad_to(TENSOR_ALIGNMENT if view.nbytes < PAGE else PAGE)
            views[name] = replace(view, begin=position)
            add(name, SAFETENSORS_NAMES[view.dtype], view.shape, view.nbytes)
    pad_to(PAGE)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    header_bytes = len(text).to_bytes(8, "little") + text
    return Layout(header=header_bytes, tensors=views, nbytes=position)


def _stored(name: str, shape: Shape, weights: str, dtype: str) -> list[tuple[str, TensorView]]:
    """The tensors that a vector or a matrix (o, i) is in the file, without their places."""
    if len(shape) == 1 or weights not in QUANTISED:
        return [(name, TensorView(shape, 0, dtype if len(shape) == 1 else weights))]
    rows, cols = shape
    numbers = TensorView(shape, 0, "int8")
    if weights == "q4":
        numbers = TensorView((rows, cols // 2), 0, "uint8")
    return [
        (name, numbers),
        (f"{name}.scales", TensorView((rows, cols // GROUP), 0, "float16")),
    ]


def _widest(slices: Sequence[Slice], weights: str, held_in: HeldIn) -> str:
    """One type for tensors that lie together: q8 holds the values of q4 too, float32 any."""
    kinds = {held_in(piece.name, weights) for piece in slices}
    if len(kinds) == 1:
        return kinds.pop()
    return "q8" if kinds <= set(QUANTISED) else "float32"


def _shape(slices: Sequence[Slice], whole: Mapping[str, Shape]) -> Shape:
    """Of the concatenation of `slices`."""
    rows = sum(s.rows[1] - s.rows[0] for s in slices)
    shape = whole[slices[0].name]
    if len(shape) == 1:
        return (rows,)
    cols = slices[0].cols
    return (rows, cols[1] - cols[0] if cols else shape[1])


def planned_blocks(
    config: ModelConfig, plan: Plan, weights: str, dtype: str, held_in: HeldIn | None = None
) -> list[list[BlockFile]]:
    """The blocks of every rank as the sharder would write them, without the files."""
    whole = config.tensor_shapes()
    layouts: dict[tuple[object, ...], Layout] = {}

    def block(shard: Shard) -> BlockFile:
        tensors = block_tensors(config, shard)
        kinds = () if held_in is None else [_widest(t, weights, held_in) for t in tensors.values()]
        like = (replace(shard, layer=min(shard.layer, 0)), *kinds)  # many layers are alike
        if like not in layouts:
            layouts[like] = layout_of(tensors, whole, weights, dtype, held_in)
        is_shared = config.tied_embeddings and shard.kind in ("input", "output")
        name = "ends" if is_shared else f"{shard.kind}_{shard.layer}"
        return layouts[like].block(shard, f"planned:{name}")

    return [[block(shard) for shard in shards] for shards in plan.shards]
