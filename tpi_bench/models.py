"""What a model is: its shape, read from a Hugging Face config, and what is refused by name.

Pure Python, so that a bad model is refused before torch is loaded or a process started.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2")
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")
DTYPES = ("float32", "float16", "bfloat16")
BYTES_PER_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: `default`, `linear` (factor) or `llama3` (all four numbers)."""

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder of the Llama family."""

    model_type: str = "llama"
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context_length: int
    rms_eps: float = 1e-5
    rope: Rope = field(default_factory=Rope)
    tied_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate",
            "vocab",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"model {name}={value!r} must be a whole number of at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"the model's {self.num_heads} heads cannot share {self.num_kv_heads} KV "
                "heads evenly"
            )

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        shapes = self.tensor_shapes().items()
        return sum(math.prod(s) for name, s in shapes if name.startswith("model.layers.0."))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint, by its Hugging Face name."""
        h, d, s = self.hidden, self.head_dim, self.intermediate
        q, kv = self.num_heads * d, self.num_kv_heads * d
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, h)}
        for layer in range(self.num_layers):
            at = f"model.layers.{layer}."
            shapes[at + "input_layernorm.weight"] = (h,)
            shapes[at + "post_attention_layernorm.weight"] = (h,)
            for name, rows, cols, bias in (
                ("self_attn.q_proj", q, h, self.qkv_bias),
                ("self_attn.k_proj", kv, h, self.qkv_bias),
                ("self_attn.v_proj", kv, h, self.qkv_bias),
                ("self_attn.o_proj", h, q, self.o_bias),
                ("mlp.gate_proj", s, h, self.mlp_bias),
                ("mlp.up_proj", s, h, self.mlp_bias),
                ("mlp.down_proj", h, s, self.mlp_bias),
            ):
                shapes[f"{at}{name}.weight"] = (rows, cols)
                if bias:
                    shapes[f"{at}{name}.bias"] = (rows,)
        shapes["model.norm.weight"] = (h,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab, h)
        return shapes


def read_config(folder: Path) -> ModelConfig:
    """The config of a Hugging Face folder.

    Raises ValueError that names the folder and the reason.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(
            f"model folder {folder} does not exist; give model.path=DIR of a Hugging Face folder"
        )
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no config.json; give model.path=DIR of a Hugging Face folder"
        )
    raw = _read_object(path)
    generation = folder / "generation_config.json"
    extra = _read_object(generation) if generation.is_file() else {}
    try:
        return parse_config(raw, eos=extra.get("eos_token_id", raw.get("eos_token_id")))
    except KeyError as error:
        raise ValueError(
            f"{path} lacks {error}; it is not a complete Llama-family config"
        ) from error
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has a value of the wrong type ({error}); download the model again"
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not readable JSON ({error}); download the model again"
        ) from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} does not hold a JSON object; download the model again")
    return raw


def parse_config(raw: Mapping[str, Any], eos: int | list[int] | None = None) -> ModelConfig:
    """A ModelConfig from the fields of a Hugging Face config.

    Refuses what the engine cannot run.
    """
    _refuse_unsupported(raw)
    heads = raw["num_attention_heads"]
    model_type = raw["model_type"]
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        model_type=model_type,
        num_layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        intermediate=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        context_length=raw.get("max_position_embeddings", 2048),
        rms_eps=raw.get("rms_norm_eps", 1e-6),
        rope=_parse_rope(raw),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        # Qwen2 always has biases on Q, K and V and none on O; Mistral has none at all.
        qkv_bias=model_type == "qwen2" or (model_type == "llama" and attention_bias),
        o_bias=model_type == "llama" and attention_bias,
        mlp_bias=model_type == "llama" and bool(raw.get("mlp_bias", False)),
        eos_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,)),
    )


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"model type {model_type!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_MODEL_TYPES)} (Llama-family decoders)"
        )
    if raw.get("num_local_experts") or raw.get("num_experts"):
        raise ValueError(
            "mixture-of-experts models (MoE) are not supported; use a dense Llama-family model"
        )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "quantized")
        raise ValueError(
            f"{method} checkpoints are not supported; use the fp32, fp16 or bf16 checkpoint"
        )
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"activation {raw['hidden_act']!r} is not supported; supported is 'silu'")
    sliding = raw.get("sliding_window")
    # Qwen2 has a switch; Mistral slides whenever a window is set, and its class default is 4096.
    in_use = (
        raw.get("use_sliding_window", False) if model_type == "qwen2" else model_type == "mistral"
    )
    if sliding is None and model_type == "mistral" and "sliding_window" not in raw:
        sliding = 4096
    layer_types = raw.get("layer_types") or []
    in_use = in_use or any(kind != "full_attention" for kind in layer_types)
    if in_use and sliding is not None and sliding < raw.get("max_position_embeddings", 2048):
        raise ValueError(
            f"sliding-window attention ({sliding} tokens) is in use and not supported; "
            "use a model with full attention (sliding_window null)"
        )
    if raw.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise ValueError(
            "partial rotary embeddings are not supported; partial_rotary_factor must be 1"
        )


def _parse_rope(raw: Mapping[str, Any]) -> Rope:
    """Both spellings: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`."""
    values = dict(raw.get("rope_scaling") or {}) | dict(raw.get("rope_parameters") or {})
    rope_type = values.get("rope_type", values.get("type", "default"))
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise ValueError(
            f"RoPE scaling {rope_type!r} is not supported; supported are "
            f"{', '.join(SUPPORTED_ROPE_TYPES)}"
        )
    theta = float(values.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    if rope_type == "default":
        return Rope(theta=theta)
    if rope_type == "linear":
        return Rope(theta=theta, rope_type="linear", factor=float(values["factor"]))
    return Rope(
        theta=theta,
        rope_type="llama3",
        factor=float(values["factor"]),
        low_freq_factor=float(values["low_freq_factor"]),
        high_freq_factor=float(values["high_freq_factor"]),
        original_context_length=int(values["original_max_position_embeddings"]),
    )


def to_hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The Hugging Face config.json of a model that has none (synthetic shapes)."""
    assert config.model_type == "llama"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": "silu",
        "eos_token_id": list(config.eos_ids) or None,
        "bos_token_id": None,
        "torch_dtype": dtype,
    }
