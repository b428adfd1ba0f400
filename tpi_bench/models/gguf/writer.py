"""From a checkpoint to a GGUF file, for llama.cpp: the same weights, read a few rows at a time.

The sharder's checkpoint goes in, one file in the cache comes out: `gguf_file`. This file knows the
metadata of llama.cpp's `llama` and `qwen2` architectures, `names.py` its tensors, `vocabulary.py`
the tokenizer. Quantised rows come from `models/quantised.py`, as those of block files do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tpi_bench.contract.model import Checkpoint, Model, ModelConfig
from tpi_bench.contract.plan import Range
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.models.block_files import flush_and_drop
from tpi_bench.models.block_layout import HeldIn
from tpi_bench.models.checkpoints import CHUNK_BYTES, refuse_shared_layers
from tpi_bench.models.gguf.names import gguf_name, permute_heads, permuted_parts
from tpi_bench.models.gguf.rope import rope_factors
from tpi_bench.models.gguf.vocabulary import add_vocabulary
from tpi_bench.models.quantised import GGUF_TYPES, WEIGHTS_OF_TYPES, packed_rows

if TYPE_CHECKING:
    from gguf import GGUFWriter

_FORMAT_VERSION = 2
# Values of one row that are quantised together, and the bytes of as many of each type.
_BLOCK_VALUES = 32
_BLOCK_BYTES = {"F32": 128, "F16": 64, "BF16": 64, "Q8_0": 34, "Q4_0": 18}
WEIGHT_TYPES = tuple(_BLOCK_BYTES)
_QUANTISED = ("Q8_0", "Q4_0")
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_ROPE_FACTORS = "rope_freqs.weight"


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


def gguf_file(model: Model, cache_dir: Path, weights: str) -> Path:
    """The model as a GGUF file with weights of this type, in the cache, made if it is missing.

    Raises ValueError for what llama.cpp, or this type of weights, cannot hold.
    """
    gguf_tensors(model.config, weights)
    refuse_shared_layers(model.checkpoint)
    key = {"format": _FORMAT_VERSION, "checkpoint": model.checkpoint.identity, "weights": weights}
    path = cache_dir / "gguf" / f"{cache.digest(key)}.gguf"
    if not path.is_file():
        in_helper(write_gguf, path, model.checkpoint, model.folder, weights)
    return path


def gguf_tensors(
    config: ModelConfig, weights: str, held_in: HeldIn | None = None
) -> list[GgufTensor]:
    """The tensors of the file in its order. Vectors are always F32, as llama.cpp wants them.

    `held_in` is the checkpoint's, which may want some matrices in another type than `weights`.
    Raises ValueError as `gguf_file` does.
    """
    permuted = permuted_parts(_architecture(config), config.num_heads, config.num_kv_heads)
    tensors = []
    for source, shape in config.tensor_shapes().items():
        if len(shape) > 1 and weights in _QUANTISED and shape[1] % _BLOCK_VALUES:
            raise ValueError(
                f"{weights} weights are blocks of {_BLOCK_VALUES} values, and {source} has rows of "
                f"{shape[1]}; choose F32, F16 or BF16 weights for this model"
            )
        kind = weights
        if held_in is not None:
            kind = GGUF_TYPES[held_in(source, WEIGHTS_OF_TYPES[weights])]
        name, part = gguf_name(source)
        tensors.append(
            GgufTensor(
                name=name,
                source=source,
                shape=shape,
                weight_type=kind if len(shape) > 1 else "F32",
                num_heads=permuted.get(part),
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
        tensors = gguf_tensors(checkpoint.config, weights, checkpoint.held_in)
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
    add_metadata(writer, config, weights)
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
        flush_and_drop(file)
    finally:
        writer.close()


def add_metadata(writer: GGUFWriter, config: ModelConfig, weights: str) -> None:
    """What llama.cpp must know of the shape."""
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
    config = checkpoint.config
    if tensor.source is None:
        yield rope_factors(config.rope, config.head_dim)
        return
    num_rows, row_bytes = tensor.shape[0], math.prod(tensor.shape[1:]) * 4
    unit = config.head_dim if tensor.num_heads else 1  # a head is not cut
    step = unit * max(1, CHUNK_BYTES // (row_bytes * unit))
    for start in range(0, num_rows, step):
        stop = min(num_rows, start + step)
        rows = _packed(checkpoint, tensor, tensor.source, (start, stop))
        if tensor.num_heads:
            rows = permute_heads(rows, (stop - start) // unit)
        yield np.ascontiguousarray(rows)


def _packed(checkpoint: Checkpoint, tensor: GgufTensor, source: str, rows: Range) -> np.ndarray:
    """Rows as GGUF packs them, in the checkpoint's order."""
    import gguf
    from gguf.quants import quantize

    if tensor.weight_type in _QUANTISED:
        return packed_rows(checkpoint, source, rows, WEIGHTS_OF_TYPES[tensor.weight_type])
    values = checkpoint.read_rows(source, *rows).float().numpy()
    return quantize(values, gguf.GGMLQuantizationType[tensor.weight_type])
