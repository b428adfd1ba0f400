"""From a GGUF file to a Hugging Face folder: dequantised once, tensor by tensor.

Config and tokenizer come from transformers' own GGUF reader, the values from the `gguf` package.
`sources.py` asks for the folder, the demo model for its conversion.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.models.gguf.names import hugging_face_name, permuted_parts, undo_permutation

if TYPE_CHECKING:
    from gguf import GGUFReader

_FILE_BYTES = 256 << 20


def folder_of_gguf(source: Path, cache_dir: Path) -> Path:
    """The Hugging Face folder of a GGUF file, in the cache, made if it is missing."""
    stat = source.stat()
    key = cache.digest([str(source.resolve()), stat.st_size, stat.st_mtime_ns])
    folder = cache_dir / "models" / f"{source.stem}-{key}"
    if not folder.is_dir():
        in_helper(_make_folder, source, folder)
    return folder


def _make_folder(source: Path, folder: Path) -> None:
    with cache.locked(folder):
        if not folder.is_dir():
            with cache.new_folder(folder) as target:
                convert_gguf(source, target)


def convert_gguf(source: Path, folder: Path) -> None:
    """Fill `folder` (config, tokenizer, fp32 safetensors) from a GGUF file. Raises ValueError."""
    import gguf
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, OSError) as error:
        raise ValueError(f"{source} is not a readable GGUF file: {error}") from error
    architecture = reader.fields["general.architecture"].contents()
    if architecture not in ("llama", "qwen2"):
        raise ValueError(
            f"{source}: GGUF architecture {architecture!r} is not supported; use llama or qwen2"
        )
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ValueError(
            f"{source}: GGUF files with scaled RoPE are not supported; use the Hugging Face folder"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except Exception as error:  # the libraries raise anything, bare Exception included
        raise ValueError(f"{source}: its config or tokenizer cannot be read: {error}") from error
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    permuted = permuted_parts(architecture, config.num_attention_heads, config.num_key_value_heads)
    _write_tensors(reader, folder, permuted)


def _write_tensors(reader: GGUFReader, folder: Path, permuted: dict[str, int]) -> None:
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    weight_map: dict[str, str] = {}
    batch: dict[str, np.ndarray] = {}

    def flush() -> None:
        if batch:
            name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
            save_file(batch, folder / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(batch, name))
            batch.clear()

    for tensor in tqdm(
        reader.tensors, desc="dequantising", unit="tensor", leave=False, disable=None
    ):
        name, part = hugging_face_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        if part in permuted:
            values = undo_permutation(values, permuted[part])
        batch[name] = np.ascontiguousarray(values)
        if sum(value.nbytes for value in batch.values()) >= _FILE_BYTES:
            flush()
    flush()
    total = sum(int(np.prod(tensor.shape)) * 4 for tensor in reader.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
