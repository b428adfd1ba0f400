"""From a GGUF file to a Hugging Face folder: dequantised once, tensor by tensor.

Config and tokenizer come from transformers' own GGUF reader, the values from the `gguf` package;
this file knows the tensor names and undoes the row order that llama.cpp gives Q and K of Llama
models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

_FILE_BYTES = 256 << 20
_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(source: Path, folder: Path) -> None:
    """Write `folder` (config, tokenizer, fp32 safetensors) from a GGUF file."""
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
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    _write_tensors(reader, folder, heads if architecture == "llama" else {})


def _write_tensors(reader: Any, folder: Path, permuted_heads: dict[str, int]) -> None:
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
        if part in permuted_heads:
            values = undo_permutation(values, permuted_heads[part])
        batch[name] = np.ascontiguousarray(values)
        if sum(value.nbytes for value in batch.values()) >= _FILE_BYTES:
            flush()
    flush()
    total = sum(int(np.prod(tensor.shape)) * 4 for tensor in reader.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def hugging_face_name(name: str) -> tuple[str, str]:
    """The checkpoint's name of a GGUF tensor, and which part of a block it is ('' at the ends)."""
    if name in _ENDS:
        return _ENDS[name], ""
    pieces = name.split(".")
    if len(pieces) != 4 or pieces[0] != "blk" or pieces[2] not in _PARTS:
        raise ValueError(f"GGUF tensor {name} has no place in a Llama-family model")
    return f"model.layers.{pieces[1]}.{_PARTS[pieces[2]]}.{pieces[3]}", pieces[2]


def undo_permutation(values: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of each rotary head; Hugging Face keeps them apart."""
    rows = values.shape[0]
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
