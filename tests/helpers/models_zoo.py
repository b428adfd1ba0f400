"""Random checkpoints of every variant the engine runs, made and answered by Transformers."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

_BASE = {
    "hidden_size": 72,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 5,
    "intermediate_size": 100,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large enough that the greedy choice is never a tie
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Variant:
    """A config class, what differs from the base, and how the checkpoint is saved."""

    config: Any = transformers.LlamaConfig
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    sharded: bool = False


# Rows that are whole groups of quantised weights, which heads of 32 are too.
WIDE = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
}
# Heads of 16: a group is two of them.
HALF_GROUPS = WIDE | {"num_attention_heads": 8, "tie_word_embeddings": True}

VARIANTS: dict[str, Variant] = {
    "gqa": Variant(changes={"head_dim": 8}, sharded=True),
    "tied": Variant(changes={"tie_word_embeddings": True}),
    "mha": Variant(changes={"num_key_value_heads": 9}),
    "mqa": Variant(changes={"num_key_value_heads": 1}),
    "head_dim": Variant(changes={"head_dim": 16}),
    "biases": Variant(changes={"attention_bias": True, "mlp_bias": True}),
    "qwen2": Variant(config=transformers.Qwen2Config),
    "mistral": Variant(config=transformers.MistralConfig, changes={"sliding_window": None}),
    "rope_linear": Variant(
        changes={"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}
    ),
    "rope_llama3": Variant(changes={"rope_parameters": _LLAMA3 | {"rope_theta": 500000.0}}),
    "fp16": Variant(dtype=torch.float16),
    "bf16": Variant(dtype=torch.bfloat16),
}


def make_checkpoint(folder: Path, variant: Variant) -> Path:
    """Save a random model of `variant`; biases are random too, so that a lost one shows."""
    torch.manual_seed(7)
    config = variant.config(**(_BASE | variant.changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    model = model.to(variant.dtype)
    size = "100KB" if variant.sharded else "5GB"
    model.save_pretrained(folder, max_shard_size=size)
    return folder


@functools.lru_cache(maxsize=64)
def oracle(
    folder: Path, prompt: tuple[int, ...], num_new: int, dtype: str = "float32"
) -> tuple[list[int], torch.Tensor]:
    """Greedy ids and logits (n, v) of Transformers, in this process."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_new,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return answer.sequences[0, len(prompt) :].tolist(), torch.cat(answer.logits).float()


def prompt_of(length: int, vocab: int = 300) -> tuple[int, ...]:
    """A fixed prompt without structure."""
    return tuple((37 * i * i + 11 * i + 5) % vocab for i in range(length))
