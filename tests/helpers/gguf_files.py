"""GGUF files of any shape and types, with numbers that no quantiser of ours makes, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from tpi_bench.contract.model import ModelConfig
from tpi_bench.models.gguf.names import gguf_name
from tpi_bench.models.gguf.vocabulary import add_vocabulary
from tpi_bench.models.gguf.writer import add_metadata

# Where a block of a type has its float16 scales, as values, and what its whole numbers go to.
_SCALES = {
    "Q8_0": ([0], 128),
    "Q4_0": ([0], 8),
    "Q4_1": ([0, 1], 15),
    "Q5_0": ([0], 16),
    "Q5_1": ([0, 1], 31),
    "Q6_K": ([104], 32 * 128),
}
_LARGEST = 0.4  # of a weight


def random_gguf(path: Path, config: ModelConfig, kinds: Mapping[str, str], default: str) -> Path:
    """A Llama model whose matrices are of type `default`, or what `kinds` says of a name's end."""
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama")
    add_metadata(writer, config, "Q8_0")
    add_vocabulary(writer, config, None)
    for source, shape in config.tensor_shapes().items():
        name, _ = gguf_name(source)
        kind = next((k for end, k in kinds.items() if source.endswith(end)), default)
        if len(shape) == 1:
            writer.add_tensor(name, rng.uniform(0.5, 1.5, shape).astype(np.float32))
        elif kind in _SCALES:
            raw = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, _random_blocks(rng, shape, kind), raw_dtype=raw)
        else:
            values = rng.normal(0, _LARGEST / 2, shape).astype(np.float32)
            raw = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random_blocks(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Random bytes with scales of a sensible size; some are zero, and some negative."""
    values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // values, nbytes), np.uint8)
    places, largest = _SCALES[kind]
    scales = rng.uniform(-1, 1, (*blocks.shape[:2], len(places))) * _LARGEST / largest
    scales[rng.random(scales.shape) < 0.02] = 0
    halves = blocks.view(np.float16)
    halves[:, :, places] = scales.astype(np.float16)
    return blocks.reshape(shape[0], -1)
