"""What a model is: its shape, where its values are read, and a model that is there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

DTYPES = ("float32", "float16", "bfloat16")  # that are computed in
WEIGHTS = (*DTYPES, "q8", "q4")  # that weights are held in
QUANTISED = ("q8", "q4")
GROUP = 32  # consecutive values of a row that share a scale when quantised, as in GGUF
FEW = 8  # most positions that kernels compute at once: of more, torch is as fast
TILE_VALUES = 1 << 21  # of a weight that is widened at once, for several positions
# One element of a stored tensor.
BYTES_PER_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
# One value of a matrix; a group's scale is a float16. As GGUF's Q8_0 and Q4_0.
BYTES_PER_WEIGHT = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "q8": 1 + 2 / GROUP,
    "q4": 0.5 + 2 / GROUP,
}


def group_of(weights: str) -> int:
    """Columns of a matrix that cannot be cut apart when it is held in `weights`."""
    return GROUP if weights in QUANTISED else 1


def resolve_types(dtype: str, weights: str) -> tuple[str, str]:
    """What is computed in and what weights are held in, from `model.dtype` and `model.weights`.

    Each follows the other where it is `auto`; quantised weights are computed with in float32.
    Raises ValueError for names that are not known.
    """
    for name, value, known in (("dtype", dtype, DTYPES), ("weights", weights, WEIGHTS)):
        if value not in ("auto", *known):
            raise ValueError(
                f"model.{name}={value} is not supported; choose one of auto, {', '.join(known)}"
            )
    if dtype == "auto":
        dtype = weights if weights in DTYPES else "float32"
    return dtype, dtype if weights == "auto" else weights


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: `default`, `linear` (factor) or `llama3` (all four numbers)."""

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192

    def kept_share(self, frequencies: Any) -> Any:
        """Of `llama3` scaling: how much of each frequency stays as it is, 0 to 1 (Llama 3.1).

        `frequencies` are radians a position, an array of numpy or torch. Wavelengths above the
        low-frequency bound are stretched by `factor` (0), those below the high-frequency bound stay
        (1), and those between are blended.
        """
        turns = self.original_context_length / (2 * math.pi / frequencies)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return blend.clip(0.0, 1.0)


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

    @property
    def end_parameters(self) -> int:
        """Parameters of the input embedding and the output head, which may be one."""
        return self.vocab * self.hidden * (1 if self.tied_embeddings else 2)

    def cache_values(self, num_positions: int) -> int:
        """Keys and values of one layer for so many positions."""
        return 2 * self.num_kv_heads * self.head_dim * num_positions

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


class Checkpoint(ABC):
    """Named tensors of which rows can be read. With `share_layers` all layers are the first."""

    config: ModelConfig
    share_layers: bool = False

    @property
    @abstractmethod
    def identity(self) -> Any:
        """Changes whenever the weights may have; the block files' key holds it."""

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> Any:
        """Rows [start, stop) of tensor `name` as a torch tensor in the checkpoint's own dtype."""

    def held_in(self, name: str, weights: str) -> str:
        """What matrix `name` is held in where `model.weights` is `weights`.

        Another type only for a file that is in `weights` itself, but for some of its matrices.
        """
        return weights

    def packed_rows(self, name: str, start: int, stop: int, weights: str) -> Any | None:
        """The rows with the very numbers that the checkpoint holds in q8 or q4, else None.

        As GGUF packs them: uint8 (n, bytes of a row), groups of scale and numbers.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is there. `folder` holds its tokenizer, and the weights where it is a Hugging
    Face folder; None for a synthetic shape.

    `dtype` is what is computed in, `weights` what the weights are held in.
    """

    name: str
    checkpoint: Checkpoint
    dtype: str
    weights: str
    folder: Path | None

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config


class ModelSource(Protocol):
    """What `model=` names."""

    name: str
    dtype: str  # as asked, `auto` included
    weights: str

    def __hash__(self) -> int: ...

    def load(self, cache_dir: Path) -> Model:
        """The model, fetched or made if it is missing. Raises ValueError. Needs no torch."""
        ...
