"""The math of a Llama-family decoder, one device's part at a time. Knows nothing of communication.

Every block returns a partial sum: added over the devices it is what the whole block would give. It
has three steps, for systems that cut the positions too: `enter` and `leave` work on any rows (one
product each), `mix` between them wants all of the new positions.
Shape legend: T new positions, S positions so far, h hidden, a own heads, b own KV heads, g query
heads per own KV head, d head dimension, c own FFN columns, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tpi_bench.contract.model import ModelConfig, Rope
from tpi_bench.contract.plan import Shard
from tpi_bench.contract.runtime import Key
from tpi_bench.engine.plans import head_groups

Weights = dict[str, torch.Tensor]


@dataclass
class KVCache:
    """Keys and values of one layer's own KV heads, allocated once: (b, max S, d)."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class RotaryTable:
    """cos and sin for every position up to `length`, each (length, d), in fp32.

    The first half of sin carries the minus sign of the rotation, so that turning a head is one
    roll.
    """

    def __init__(self, rope: Rope, head_dim: int, length: int) -> None:
        angles = torch.outer(torch.arange(length).float(), inverse_frequencies(rope, head_dim))
        self._cos = torch.cat((angles, angles), dim=-1).cos()
        self._sin = torch.cat((-angles.sin(), angles.sin()), dim=-1)
        self._half = head_dim // 2
        self._at = (-1, -1)
        self._now = (self._cos, self._sin)

    def rotate(self, heads: torch.Tensor, position: int) -> torch.Tensor:
        """heads (n, T, d) at T positions from `position` on. All layers ask for the same."""
        span = (position, position + heads.shape[1])
        if span != self._at:
            self._at = span
            self._now = (self._cos[span[0] : span[1]], self._sin[span[0] : span[1]])
        cos, sin = self._now
        turned = heads.roll(self._half, -1)
        return torch.addcmul(heads * cos, turned, sin).to(heads.dtype)


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """(d / 2,) inverse frequencies. `llama3` blends scaled and plain ones by wavelength."""
    plain = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
    if rope.rope_type == "default":
        return plain
    if rope.rope_type == "linear":
        return plain / rope.factor
    blend = rope.kept_share(plain)
    return (1 - blend) * plain / rope.factor + blend * plain


class HeadMap:
    """How a shard's query heads meet its KV heads; the same in every layer.

    With cut groups, queries are gathered into equal groups and results taken back out.
    """

    def __init__(self, shard: Shard, group: int) -> None:
        self.a = shard.heads[1] - shard.heads[0]
        self.b = shard.kv_heads[1] - shard.kv_heads[0]
        groups = head_groups(shard.heads, shard.kv_heads, group)
        self.g = len(groups[0])
        flat = [head for members in groups for head in members]
        places = [flat.index(head) for head in range(self.a)]
        self.is_even = flat == list(range(self.a))
        self.into_groups = torch.tensor(flat)
        self.out_of_groups = torch.tensor(places)
        self.head_to_kv = torch.tensor([place // self.g for place in places])


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
    ) -> None:
        self.eps = config.rms_eps
        self.rotary = rotary
        self.d = config.head_dim
        self.scale = self.d**-0.5
        self._none = torch.zeros((), dtype=dtype)  # baddbmm's addend, which beta=0 leaves out
        self.a, self.b, self.g = heads.a, heads.b, heads.g
        self.heads = heads
        shape = (self.b, length, self.d)
        self.cache = KVCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
        has_bias = config.qkv_bias, config.o_bias and shard.adds_bias
        self._key = (config.hidden, self.a, self.b, self.g, self.d, heads.is_even, has_bias, dtype)

    def key(self, num_new: int, position: int) -> Key:
        return ("attn", num_new, position, *self._key)

    def __call__(self, x: torch.Tensor, weights: Weights, position: int) -> torch.Tensor:
        """x (T, h) at positions position .. position + T - 1 -> partial (T, h)."""
        return self.leave(self.mix(self.enter(self.norm(x, weights), weights), position), weights)

    def norm(self, x: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(T, h) -> (T, h)."""
        return rms_norm(x, weights["norm"], self.eps)

    def enter(self, normed: torch.Tensor, weights: Weights) -> torch.Tensor:
        """Rows of the normed state (t, h) -> their queries, keys and values (t, (a + 2 b) d)."""
        return project(normed, weights["qkv"], weights.get("qkv_bias"))

    def mix(self, qkv: torch.Tensor, position: int) -> torch.Tensor:
        """All new positions' (T, (a + 2 b) d), and those in the cache -> mixed heads (T, a d)."""
        num_new, past = qkv.shape[0], position + qkv.shape[0]
        heads = qkv.view(num_new, self.a + 2 * self.b, self.d).transpose(0, 1)  # (a + 2b, T, d)
        queries_keys, new_values = heads.split((self.a + self.b, self.b))
        queries, new_keys = self.rotary.rotate(queries_keys, position).split((self.a, self.b))
        self.cache.keys[:, position:past] = new_keys
        self.cache.values[:, position:past] = new_values
        keys, values = self.cache.keys[:, :past], self.cache.values[:, :past]
        attend = self._decode if num_new == 1 else self._prefill
        return attend(queries, keys, values).transpose(0, 1).reshape(num_new, self.a * self.d)

    def leave(self, mixed: torch.Tensor, weights: Weights) -> torch.Tensor:
        """Rows of the mixed heads (t, a d) -> rows of the partial sum (t, h)."""
        return project(mixed, weights["o"], weights.get("o_bias"))

    def _decode(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """One query position against the cache: (a, 1, d), two batched products over KV heads."""
        if not self.heads.is_even:
            queries = queries[self.heads.into_groups]
        grouped = queries.reshape(self.b, self.g, self.d)
        scores = torch.baddbmm(self._none, grouped, keys.transpose(1, 2), beta=0, alpha=self.scale)
        shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
        mixed = torch.bmm(shares, values).view(self.b * self.g, 1, self.d)
        return mixed if self.heads.is_even else mixed[self.heads.out_of_groups]

    def _prefill(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """All positions of a prompt at once, causal: (a, T, d). The prompt starts at position 0."""
        assert queries.shape[1] == keys.shape[1]
        return F.scaled_dot_product_attention(
            queries[None],
            keys[self.heads.head_to_kv][None],
            values[self.heads.head_to_kv][None],
            is_causal=True,
        )[0]


class FeedForwardBlock:
    """The FFN half of a layer (SwiGLU) for one shard."""

    def __init__(self, config: ModelConfig, shard: Shard, dtype: torch.dtype) -> None:
        self.eps = config.rms_eps
        columns = shard.columns[1] - shard.columns[0]
        has_bias = config.mlp_bias, config.mlp_bias and shard.adds_bias
        self._key = (config.hidden, columns, has_bias, dtype)

    def key(self, num_new: int, position: int) -> Key:
        return ("ffn", num_new, *self._key)

    def __call__(self, x: torch.Tensor, weights: Weights, position: int) -> torch.Tensor:
        """x (T, h) -> partial (T, h)."""
        return self.leave(self.mix(self.enter(self.norm(x, weights), weights), position), weights)

    def norm(self, x: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(T, h) -> (T, h)."""
        return rms_norm(x, weights["norm"], self.eps)

    def enter(self, normed: torch.Tensor, weights: Weights) -> torch.Tensor:
        """Rows of the normed state (t, h) -> gate and up (t, 2 c)."""
        return project(normed, weights["gate_up"], weights.get("gate_up_bias"))

    def mix(self, both: torch.Tensor, position: int) -> torch.Tensor:
        """(T, 2 c) -> (T, c). Each position by itself, whatever `position`."""
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up

    def leave(self, mixed: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(t, c) -> rows of the partial sum (t, h)."""
        return project(mixed, weights["down"], weights.get("down_bias"))


def embed(token_ids: list[int], weights: Weights) -> torch.Tensor:
    """Token ids -> (T, h)."""
    return weights["embedding"][torch.tensor(token_ids)]


def output_logits(x: torch.Tensor, weights: Weights, eps: float) -> torch.Tensor:
    """The last position of x (T, h) -> logits (v,) in fp32. A tied head is the embedding itself."""
    head = weights["head"] if "head" in weights else weights["embedding"]
    return project(rms_norm(x[-1:], weights["norm"], eps), head)[0].float()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension; half precision is widened for it."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    return weight * F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype)


def project(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x (T, i) times weight (o, i) transposed -> (T, o).

    One row in fp32 goes through a batched product over row chunks: torch's own matrix-times-vector
    uses one thread and stays far from memory bandwidth.
    """
    rows, cols = weight.shape
    if x.shape[0] == 1 and weight.dtype == torch.float32:
        for chunks in (8, 4, 2):
            if rows % chunks == 0:
                # The transposed row keeps a stride that BLAS takes as it is; a (cols, 1) view does
                # not.
                column = x.expand(chunks, 1, cols).transpose(1, 2)
                out = torch.bmm(weight.view(chunks, rows // chunks, cols), column).view(1, rows)
                return out if bias is None else out + bias
    return F.linear(x, weight, bias)
