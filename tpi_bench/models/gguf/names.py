"""What llama.cpp calls a checkpoint's tensors, and in which order it wants the rows of some.

Said once, for `reader.py` and `writer.py`. A *part* is a GGUF name without its block, like
`attn_q`; the tensors at the ends of a model have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# GGUF to Hugging Face.
_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_ENDS = {source: name for name, source in _ENDS.items()}
_GGUF_PARTS = {source: part for part, source in _PARTS.items()}


def gguf_name(source: str) -> tuple[str, str]:
    """The GGUF name of a checkpoint's tensor, and its part ('' at the ends)."""
    if source in _GGUF_ENDS:
        return _GGUF_ENDS[source], ""
    layer, rest = source.removeprefix("model.layers.").split(".", 1)
    name, kind = rest.rsplit(".", 1)
    part = _GGUF_PARTS[name]
    return f"blk.{layer}.{part}.{kind}", part


def hugging_face_name(name: str) -> tuple[str, str]:
    """The checkpoint's name of a GGUF tensor, and its part ('' at the ends). Raises ValueError."""
    if name in _ENDS:
        return _ENDS[name], ""
    pieces = name.split(".")
    if len(pieces) != 4 or pieces[0] != "blk" or pieces[2] not in _PARTS:
        raise ValueError(f"GGUF tensor {name} has no place in a Llama-family model")
    _, layer, part, kind = pieces
    return f"model.layers.{layer}.{_PARTS[part]}.{kind}", part


def permuted_parts(architecture: str, num_heads: int, num_kv_heads: int) -> dict[str, int]:
    """The parts whose rows `permute_heads` has to order, with the heads they consist of.

    llama.cpp's `llama` turns neighbours in a rotary head, Hugging Face (and llama.cpp's `qwen2`)
    values half a head apart.
    """
    if architecture != "llama":
        return {}
    return {"attn_q": num_heads, "attn_k": num_kv_heads}


def permute_heads(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Interleave the two halves of each rotary head, as llama.cpp has them."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def undo_permutation(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Take the two halves of each rotary head apart, as Hugging Face has them."""
    pairs = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
