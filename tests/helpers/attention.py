"""A shard's attention with random queries, keys and values, and what it should give, for tests."""

from __future__ import annotations

import torch

from tpi_bench.contract.model import Rope
from tpi_bench.contract.plan import Shard
from tpi_bench.engine.attention import Attention, HeadMap, RotaryTable

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
LENGTH = 70
# Heads of a shard and of the model's groups: even, cut at both ends, one alone.
HEADS = {"even": ((0, 6), (0, 2), 3), "cut": ((2, 7), (0, 3), 3), "alone": ((4, 5), (1, 2), 3)}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(heads: str, d: int, dtype: torch.dtype) -> tuple[Attention, RotaryTable]:
    own, kv_heads, group = HEADS[heads]
    shard = Shard(kind="attn", layer=0, heads=own, kv_heads=kv_heads)
    rotary = RotaryTable(Rope(), d, LENGTH)
    return Attention(HeadMap(shard, group), rotary, d, LENGTH, dtype), rotary


def expected(qkv: torch.Tensor, heads: str, rotary: RotaryTable, d: int) -> torch.Tensor:
    """Mixed heads (a d,) of the last of all positions (S, (a + 2 b) d), in float64."""
    (first, last), kv_heads, group = HEADS[heads]
    a, b = last - first, kv_heads[1] - kv_heads[0]
    cos, sin = (table.double() for table in rotary.at(0, len(qkv)))
    wide = qkv.double().view(len(qkv), a + 2 * b, d).transpose(0, 1)
    turned = wide * cos + wide.roll(d // 2, -1) * sin
    mixed = []
    for head in range(a):
        kv_head = (first + head) // group - kv_heads[0]
        shares = (turned[a + kv_head] @ turned[head, -1] * d**-0.5).softmax(0)
        mixed.append(shares @ wide[a + b + kv_head])
    return torch.cat(mixed)
