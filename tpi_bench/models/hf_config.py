"""A model's shape from a Hugging Face config.json, what is refused by name, and the way back.

Sources read it, so that a bad model is refused before torch is loaded or a process started;
`synthetic.py` writes one for a shape that has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpi_bench.contract.model import ModelConfig, Rope

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2")
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")
_CONTEXT_LENGTH = 2048  # where a config does not tell


def read_config(folder: Path) -> ModelConfig:
    """The config of a Hugging Face folder.

    Raises ValueError that names the folder and the reason.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(
            f"model folder {folder} does not exist; give model.path=DIR of a Hugging Face folder, "
            "or a FILE.gguf"
        )
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no config.json; give model.path=DIR of a Hugging Face folder, or a "
            "FILE.gguf"
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

    Raises ValueError for what the engine cannot run.
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
        context_length=raw.get("max_position_embeddings", _CONTEXT_LENGTH),
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
    sliding = _sliding_window(raw)
    if sliding is not None and sliding < raw.get("max_position_embeddings", _CONTEXT_LENGTH):
        raise ValueError(
            f"sliding-window attention ({sliding} tokens) is in use and not supported; "
            "use a model with full attention (sliding_window null)"
        )
    if raw.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise ValueError(
            "partial rotary embeddings are not supported; partial_rotary_factor must be 1"
        )


def _sliding_window(raw: Mapping[str, Any]) -> int | None:
    """How many tokens attention reaches back, if that is limited."""
    model_type = raw["model_type"]
    window = raw.get("sliding_window")
    # Qwen2 has a switch; Mistral slides whenever a window is set, and its class default is 4096.
    in_use = (
        raw.get("use_sliding_window", False) if model_type == "qwen2" else model_type == "mistral"
    )
    if model_type == "mistral" and "sliding_window" not in raw:
        window = 4096
    layer_types = raw.get("layer_types") or []
    in_use = in_use or any(kind != "full_attention" for kind in layer_types)
    return window if in_use else None


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


def to_hf_config(config: ModelConfig, dtype: str) -> dict[str, object]:
    """The config.json of a synthetic shape: a Llama model with plain RoPE."""
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
