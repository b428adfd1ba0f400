"""The math of a Llama-family decoder, one device's part at a time. Knows nothing of communication.

Every block returns a partial sum: added over the devices it is what the whole block would give. It
has three steps, for systems that cut the positions too: `enter` and `leave` work on any rows (one
product each), `mix` between them wants all of the new positions.
Shape legend: T new positions, h hidden, a own heads, b own KV heads, d head dimension, c own FFN
columns, v vocabulary.
"""

from __future__ import annotations

import torch

from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Shard
from tpi_bench.contract.runtime import Key
from tpi_bench.engine.attention import Attention, HeadMap, RotaryTable
from tpi_bench.engine.one_position import gate, rms_norm
from tpi_bench.engine.weights import Weights


class AttentionBlock:
    """The attention half of a layer for one shard; also owns the layer's KV cache."""

    def __init__(
        self,
        config: ModelConfig,
        shard: Shard,
        heads: HeadMap,
        rotary: RotaryTable,
        length: int,
        dtype: torch.dtype,
        weights: str,
    ) -> None:
        self.eps = config.rms_eps
        self._attention = Attention(heads, rotary, config.head_dim, length, dtype)
        self.cache = self._attention.cache
        has_bias = config.qkv_bias, config.o_bias and shard.adds_bias
        shape_key = (config.hidden, heads.a, heads.b, heads.group, config.head_dim)
        self._key = (*shape_key, has_bias, dtype, weights)

    def key(self, num_new: int, position: int) -> Key:
        return ("attn", num_new, position, *self._key)

    def __call__(self, x: torch.Tensor, weights: Weights, position: int) -> torch.Tensor:
        """x (T, h) at positions position .. position + T - 1 -> partial (T, h)."""
        return self.leave(self.mix(self.enter(self.norm(x, weights), weights), position), weights)

    def norm(self, x: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(T, h) -> (T, h)."""
        return rms_norm(x, weights.vectors["norm"], self.eps)

    def enter(self, normed: torch.Tensor, weights: Weights) -> torch.Tensor:
        """Rows of the normed state (t, h) -> their queries, keys and values (t, (a + 2 b) d)."""
        return project(normed, weights, "qkv")

    def mix(self, qkv: torch.Tensor, position: int) -> torch.Tensor:
        """All new positions' (T, (a + 2 b) d), and those in the cache -> mixed heads (T, a d)."""
        return self._attention(qkv, position)

    def leave(self, mixed: torch.Tensor, weights: Weights) -> torch.Tensor:
        """Rows of the mixed heads (t, a d) -> rows of the partial sum (t, h)."""
        return project(mixed, weights, "o")


class FeedForwardBlock:
    """The FFN half of a layer (SwiGLU) for one shard."""

    def __init__(self, config: ModelConfig, shard: Shard, dtype: torch.dtype, weights: str) -> None:
        self.eps = config.rms_eps
        columns = shard.columns[1] - shard.columns[0]
        has_bias = config.mlp_bias, config.mlp_bias and shard.adds_bias
        self._key = (config.hidden, columns, has_bias, dtype, weights)

    def key(self, num_new: int, position: int) -> Key:
        return ("ffn", num_new, *self._key)

    def __call__(self, x: torch.Tensor, weights: Weights, position: int) -> torch.Tensor:
        """x (T, h) -> partial (T, h)."""
        return self.leave(self.mix(self.enter(self.norm(x, weights), weights), position), weights)

    def norm(self, x: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(T, h) -> (T, h)."""
        return rms_norm(x, weights.vectors["norm"], self.eps)

    def enter(self, normed: torch.Tensor, weights: Weights) -> torch.Tensor:
        """Rows of the normed state (t, h) -> gate and up (t, 2 c)."""
        return project(normed, weights, "gate_up")

    def mix(self, both: torch.Tensor, position: int) -> torch.Tensor:
        """(T, 2 c) -> (T, c). Each position by itself, whatever `position`."""
        return gate(both)

    def leave(self, mixed: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(t, c) -> rows of the partial sum (t, h)."""
        return project(mixed, weights, "down")


def embed(token_ids: list[int], weights: Weights, dtype: torch.dtype) -> torch.Tensor:
    """Token ids -> (T, h) in `dtype`."""
    return weights.matrices["embedding"].rows(torch.tensor(token_ids), dtype)


def output_logits(x: torch.Tensor, weights: Weights, eps: float) -> torch.Tensor:
    """x (T, h) -> logits (T, v) in fp32. A tied head is the embedding itself."""
    matrices = weights.matrices
    head = matrices.get("head") or matrices["embedding"]
    return head(rms_norm(x, weights.vectors["norm"], eps)).float()


def project(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """x (T, i) times the matrix `name` (o, i) transposed, and its bias, if it has one -> (T, o)."""
    out = weights.matrices[name](x)
    bias = weights.vectors.get(f"{name}_bias")
    return out if bias is None else out + bias.to(out.dtype)
