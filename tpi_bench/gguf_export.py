"""From a checkpoint to a GGUF file, for llama.cpp: the same weights, read a few rows at a time.

The sharder's checkpoint goes in, one file in the cache comes out. This file knows llama.cpp's
tensor names, the metadata of its `llama` and `qwen2` architectures, and the row order that its
`llama` architecture wants of Q and K; the vocabulary is in `gguf_vocab.py`. The values are
quantised by the `gguf` package.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpi_bench import cache
from tpi_bench.checkpoints import CHUNK_BYTES, Checkpoint
from tpi_bench.gguf_vocab import add_vocabulary
from tpi_bench.models import ModelConfig, Rope

FORMAT_VERSION = 1
# Bytes of 32 values; a quantised block is that many values of one row.
_BLOCK_VALUES = 32
_BLOCK_BYTES = {"F32": 128, "F16": 64, "BF16": 64, "Q8_0": 34, "Q4_0": 18}
WEIGHT_TYPES = tuple(_BLOCK_BYTES)
_QUANTISED = ("Q8_0", "Q4_0")
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_ROPE_FACTORS = "rope_freqs.weight"
_ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of the file. `source` is its name in the checkpoint; None for RoPE factors.

    `num_heads` is set where llama.cpp wants the rows of each head in another order.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    weight_type: str
    num_heads: int | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _BLOCK_BYTES[self.weight_type] // _BLOCK_VALUES


def gguf_path(cache_dir: Path, checkpoint: Checkpoint, weights: str) -> Path:
    """Where this checkpoint's GGUF file with weights of this type is kept."""
    key = {"format": FORMAT_VERSION, "checkpoint": checkpoint.identity, "weights": weights}
    return cache_dir / "gguf" / f"{cache.digest(key)}.gguf"


def gguf_tensors(config: ModelConfig, weights: str) -> list[GgufTensor]:
    """The tensors of the file in its order. Vectors are always F32, as llama.cpp wants them.

    Raises ValueError for what llama.cpp, or this type of weights, cannot hold.
    """
    architecture = _architecture(config)
    heads = {}
    if architecture == "llama":
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    tensors = []
    for source, shape in config.tensor_shapes().items():
        if len(shape) > 1 and weights in _QUANTISED and shape[1] % _BLOCK_VALUES:
            raise ValueError(
                f"{weights} weights are blocks of {_BLOCK_VALUES} values, and {source} has rows of "
                f"{shape[1]}; choose F32, F16 or BF16 weights for this model"
            )
        name, part = _gguf_name(source)
        tensors.append(
            GgufTensor(
                name=name,
                source=source,
                shape=shape,
                weight_type=weights if len(shape) > 1 else "F32",
                num_heads=heads.get(part),
            )
        )
    if config.rope.rope_type == "llama3":
        shape = (config.head_dim // 2,)
        tensors.append(GgufTensor(name=_ROPE_FACTORS, source=None, shape=shape, weight_type="F32"))
    return tensors


def write_gguf(path: Path, checkpoint: Checkpoint, folder: Path | None, weights: str) -> None:
    """Make `path`, unless another process has by now. `folder` holds the tokenizer, if any."""
    with cache.locked(path):
        if path.is_file():
            return
        tensors = gguf_tensors(checkpoint.config, weights)
        total = sum(tensor.nbytes for tensor in tensors)
        cache.require_space(path.parent, total + (64 << 20), "writing the model for llama.cpp")
        temporary = path.with_name(f".{path.name}.tmp")
        with cache.explain_write_errors(path.parent):
            try:
                _write(temporary, checkpoint, folder, tensors, weights)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


def _architecture(config: ModelConfig) -> str:
    """llama.cpp's architecture. Raises ValueError for what it cannot run."""
    if config.model_type != "qwen2":
        return "llama"
    if config.num_heads * config.head_dim != config.hidden:
        raise ValueError(
            f"llama.cpp runs Qwen2 models only with heads that add up to the hidden size; this one "
            f"has {config.num_heads} heads of {config.head_dim} and a hidden size of "
            f"{config.hidden}"
        )
    if config.rope.rope_type == "llama3":
        raise ValueError("llama.cpp has no llama3 RoPE scaling for Qwen2 models")
    return "qwen2"


def _gguf_name(source: str) -> tuple[str, str]:
    """The GGUF name of a checkpoint's tensor, and which part of a block it is ('' at the ends)."""
    if source in _ENDS:
        return _ENDS[source], ""
    layer, rest = source.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_PARTS[part]}.{kind}", _PARTS[part]


def _write(
    path: Path,
    checkpoint: Checkpoint,
    folder: Path | None,
    tensors: list[GgufTensor],
    weights: str,
) -> None:
    import gguf

    config = checkpoint.config
    writer = gguf.GGUFWriter(path, _architecture(config))
    _add_metadata(writer, config, weights)
    add_vocabulary(writer, config, folder)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.weight_type]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind
        )
    total = sum(tensor.nbytes for tensor in tensors)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        with cache.progress(total, f"writing a GGUF file ({weights})") as bar:
            for tensor in tensors:
                for chunk in _chunks(checkpoint, tensor):
                    file.write(chunk.data)
                    bar.update(chunk.nbytes)
                writer.write_padding(file, tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        writer.close()


def _add_metadata(writer: Any, config: ModelConfig, weights: str) -> None:
    import gguf

    writer.add_file_type(_FILE_TYPES[weights])
    if weights in _QUANTISED:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    if config.rope.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)


def _chunks(checkpoint: Checkpoint, tensor: GgufTensor) -> Iterator[np.ndarray]:
    """The tensor's bytes in the file, a few rows (or heads) at a time."""
    import gguf
    from gguf.quants import quantize

    if tensor.source is None:
        yield rope_factors(checkpoint.config)
        return
    kind = gguf.GGMLQuantizationType[tensor.weight_type]
    num_rows, row_bytes = tensor.shape[0], math.prod(tensor.shape[1:]) * 4
    unit = checkpoint.config.head_dim if tensor.num_heads else 1  # a head is not cut
    step = unit * max(1, CHUNK_BYTES // (row_bytes * unit))
    for start in range(0, num_rows, step):
        stop = min(num_rows, start + step)
        rows = checkpoint.read_rows(tensor.source, start, stop).float().numpy()
        if tensor.num_heads:
            rows = permute_heads(rows, (stop - start) // unit)
        yield np.ascontiguousarray(quantize(np.ascontiguousarray(rows), kind))


def permute_heads(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Interleave the two halves of each rotary head, as llama.cpp's `llama` turns neighbours."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def rope_factors(config: ModelConfig) -> np.ndarray:
    """What llama.cpp divides each rotary frequency by, for llama3 scaling: (d / 2,) in fp32.

    Wavelengths above the low-frequency bound are stretched by `factor`, those below the
    high-frequency bound stay, and those between are blended (Llama 3.1).
    """
    rope: Rope = config.rope
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    wavelengths = 2 * math.pi * rope.theta**exponents
    share = (rope.original_context_length / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    share = np.clip(share, 0, 1)  # 0: stretched, 1: as it is
    return (1 / ((1 - share) / rope.factor + share)).astype(np.float32)
