"""Attention of new positions over a shard's KV cache: what lies between its products.

Many positions of a prompt are mixed by torch, with those that the cache holds. One position, or a
few, take two compiled kernels (`position_kernels.py`), or torch where they do not fit; as an
operator of torch that is `tpi_bench::attend`, which is what virtual time counts (see `matrix.py`).
Shape legend: T new positions, S positions so far, a own heads, b own KV heads, d head dimension.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import library
from torch.utils.flop_counter import register_flop_formula

from tpi_bench.contract.model import FEW, Rope
from tpi_bench.contract.plan import Shard
from tpi_bench.engine.compiled import Kernel, is_traced, kernels
from tpi_bench.engine.task import (
    COS,
    HEAD_TO_KV,
    KEYS,
    KV_HEADS,
    NUM_NEW,
    OUT,
    PITCH,
    POSITION,
    SCRATCH,
    SIN,
    STRIDE,
    VALUES,
    Task,
    X,
)

_LANES = 16
_PIECE = 64  # positions of a prompt whose scores are computed at once
_SHORT = 1 << 17  # products of queries with keys that one thread has done before others wake up


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
        self._cos, self._sin = _turns(rope, head_dim, length, torch.empty(0).device)
        self._at = (-1, -1)
        self._now = (self._cos, self._sin)
        self.length = length

    def at(self, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin (T, d) of positions `first` to `end`. All layers ask for the same."""
        if (first, end) != self._at:
            self._at = (first, end)
            self._now = (self._cos[first:end], self._sin[first:end])
        return self._now


@functools.lru_cache(maxsize=4)
def _turns(
    rope: Rope, head_dim: int, length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of a table, on the device of new tensors. Virtual devices have the same."""
    angles = torch.outer(torch.arange(length).float(), inverse_frequencies(rope, head_dim))
    sines = angles.sin()
    return torch.cat((angles, angles), dim=-1).cos(), torch.cat((-sines, sines), dim=-1)


def later_than(first: int, end: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores (T, S) of positions `first` to `end`: -inf for what comes later."""
    return torch.full((end - first, end), -torch.inf, dtype=dtype).triu_(first + 1)


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

    `group` is the number of query heads of every KV head, 0 where it is not the same: a device may
    own only part of a group (9 heads on 2 devices).
    """

    def __init__(self, shard: Shard, group: int) -> None:
        self.a = shard.heads[1] - shard.heads[0]
        self.b = shard.kv_heads[1] - shard.kv_heads[0]
        own = [head // group - shard.kv_heads[0] for head in range(*shard.heads)]
        sizes = {own.count(kv_head) for kv_head in range(self.b)}
        self.group = sizes.pop() if len(sizes) == 1 else 0
        self.head_to_kv = torch.tensor(own)


class Given(NamedTuple):
    """What attention is given: the arguments of the operator, in its order."""

    qkv: torch.Tensor  # queries, keys and values of new positions (T, (a + 2 b) d)
    keys: torch.Tensor  # the cache (b, max S, d), which the new ones enter
    values: torch.Tensor
    cos: torch.Tensor  # of the new positions (T, d)
    sin: torch.Tensor
    head_to_kv: torch.Tensor
    group: int


class Attention:
    """Queries, keys and values of new positions -> mixed heads; owns a layer's KV cache."""

    def __init__(
        self, heads: HeadMap, rotary: RotaryTable, head_dim: int, length: int, dtype: torch.dtype
    ) -> None:
        self._heads, self._rotary = heads, rotary
        shape = (heads.b, length, head_dim)
        self.cache = KVCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))

    def __call__(self, qkv: torch.Tensor, position: int) -> torch.Tensor:
        """New positions' (T, (a + 2 b) d), from `position` on -> mixed heads (T, a d)."""
        keys, values, past = self.cache.keys, self.cache.values, position + qkv.shape[0]
        if not 0 <= position < past <= keys.shape[1]:
            raise ValueError(
                f"{qkv.shape[0]} new positions from position {position} on: there must be at least "
                f"one, and the KV cache has room for {keys.shape[1]} (prompt and answer)"
            )
        turns = self._rotary.at(position, past)
        heads = (self._heads.head_to_kv, self._heads.group)
        if qkv.shape[0] > FEW:
            return _prefill(Given(qkv, keys, values, *turns, *heads), position)
        if is_traced(qkv):
            so_far = (keys[:, :past], values[:, :past])
            out: torch.Tensor = torch.ops.tpi_bench.attend(qkv, *so_far, *turns, *heads)
            return out
        return _attend(Given(qkv, keys, values, *turns, *heads), position)


def _attend(given: Given, position: int) -> torch.Tensor:
    """A few positions over the cache, each up to itself: mixed heads (T, a d)."""
    num_heads, (num_kv_heads, length, d) = len(given.head_to_kv), given.keys.shape
    num_new = given.qkv.shape[0]
    if d % _LANES or d < 2 * _LANES or not kernels():
        return _attend_by_torch(given, position)
    task, room = _task(num_heads, num_kv_heads, d, length, num_new)
    rows, out = given.qkv.float().contiguous(), torch.empty((num_new, num_heads * d))
    task.point(X, rows)
    task.point(OUT, out)
    task.point(KEYS, given.keys)
    task.point(VALUES, given.values)
    task.point(COS, given.cos)
    task.point(SIN, given.sin)
    task.point(HEAD_TO_KV, given.head_to_kv)
    task.point(SCRATCH, room)
    task.put(POSITION, position)
    task.put(STRIDE, given.keys.stride(0))
    is_short = num_new * num_heads * d * position < _SHORT
    num_threads = 1 if is_short else torch.get_num_threads()
    task.begin(num_threads)
    remember, attend = _kernels(given.keys.dtype)
    remember(task.place)
    attend(task.place, num_threads)
    return out.to(given.qkv.dtype)


@functools.cache
def _kernels(dtype: torch.dtype) -> tuple[Kernel, Kernel]:
    name = str(dtype).removeprefix("torch.")
    return kernels()[f"remember_{name}"], kernels()[f"attend_{name}"]


@functools.lru_cache(maxsize=64)
def _task(
    num_heads: int, num_kv_heads: int, d: int, length: int, num_new: int
) -> tuple[Task, torch.Tensor]:
    """A task, and room for each new position's heads: the turned query and its scores, a whole
    number of vectors.
    """
    pitch = d + -(-length // _LANES) * _LANES
    task = Task(num_heads, d)
    task.put(KV_HEADS, num_kv_heads)
    task.put(PITCH, 4 * pitch)
    task.put(NUM_NEW, num_new)
    task.put_real(d**-0.5)
    return task, torch.empty(num_new * num_heads * pitch)


def _attend_by_torch(given: Given, position: int) -> torch.Tensor:
    num_new = given.qkv.shape[0]
    if num_new > 1:
        return _prefill(given, position)
    queries, keys, values = _remember(given, position)
    group = given.group
    if group == 0:  # as if every query head had its own KV head
        keys, values, group = keys[given.head_to_kv], values[given.head_to_kv], 1
    num_kv_heads, _, d = keys.shape
    scores = torch.bmm(queries.reshape(num_kv_heads, group, d), keys.transpose(1, 2)) * d**-0.5
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    return torch.bmm(shares, values).view(1, -1)


def _prefill(given: Given, position: int) -> torch.Tensor:
    """Several positions of a prompt at once: (T, a d). Each sees what is cached and itself.

    A piece of the positions after another, each with the keys up to its own last one: torch
    computes all scores that it is given keys for (up to 512 of them) before it leaves out later
    ones.
    """
    queries, keys, values = _remember(given, position)
    keys, values = keys[given.head_to_kv], values[given.head_to_kv]
    num_new = queries.shape[1]
    mixed = [
        attend_piece(queries[:, first : first + _PIECE], keys, values, position + first)
        for first in range(0, num_new, _PIECE)
    ]
    whole = mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)
    return whole.transpose(0, 1).reshape(num_new, -1)


def attend_piece(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int
) -> torch.Tensor:
    """Queries (a, T, d) from `position` on, over keys and values (a, S, d) -> (a, T, d)."""
    past = position + queries.shape[1]
    return F.scaled_dot_product_attention(
        queries[None],
        keys[None, :, :past],
        values[None, :, :past],
        attn_mask=later_than(position, past, queries.dtype) if position else None,
        is_causal=position == 0,
    )[0]


def _remember(given: Given, position: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turned queries (a, T, d), and keys and values (b, S, d) so far with the new ones."""
    (num_kv_heads, _, d), num_new = given.keys.shape, given.qkv.shape[0]
    past = position + num_new
    heads = given.qkv.view(num_new, -1, d).transpose(0, 1)  # (a + 2 b, T, d)
    turned, new_values = heads[:-num_kv_heads], heads[-num_kv_heads:]
    rolled = turned.roll(d // 2, -1)
    turned = torch.addcmul(turned * given.cos, rolled, given.sin).to(given.qkv.dtype)
    given.keys[:, position:past] = turned[-num_kv_heads:]
    given.values[:, position:past] = new_values
    return turned[:-num_kv_heads], given.keys[:, :past], given.values[:, :past]


def _attend_so_far(*given: Any) -> torch.Tensor:
    """As an operator of torch: the cache ends with the last of the new positions."""
    return _attend(Given(*given), given[1].shape[1] - given[0].shape[0])


def _shape_of_mixed(qkv: torch.Tensor, keys: torch.Tensor, *_others: Any) -> torch.Tensor:
    return qkv.new_empty((qkv.shape[0], qkv.shape[1] - 2 * keys.shape[0] * keys.shape[2]))


def _flops(qkv: torch.Size, keys: torch.Size, *_others: Any, **_more: Any) -> int:
    """Products of the query heads with keys, and of their shares with values."""
    return 4 * (qkv[1] - 2 * keys[0] * keys[2]) * _num_seen(qkv[0], keys[1])


def _num_seen(num_new: int, num_cached: int) -> int:
    """Positions that are looked at, by all new ones together: each sees those up to itself."""
    return num_new * num_cached - num_new * (num_new - 1) // 2


_LIBRARY = library.Library("tpi_bench", "FRAGMENT")
_LIBRARY.define(
    "attend(Tensor qkv, Tensor(a!) keys, Tensor(b!) values, Tensor cos, Tensor sin, "
    "Tensor head_to_kv, int group) -> Tensor"
)
_LIBRARY.impl("attend", _attend_so_far, "CPU")
_LIBRARY.impl("attend", _shape_of_mixed, "Meta")
register_flop_formula(torch.ops.tpi_bench.attend)(_flops)
