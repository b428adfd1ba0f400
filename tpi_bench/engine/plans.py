"""Dividing a model: heads and FFN columns, or layers, over devices. Pure arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Plan, Range, Shard


def split_proportional(total: int, proportions: Sequence[float]) -> list[Range]:
    """Cut range(total) into consecutive parts near `proportions`, each at least 1 long.

    Largest remainder; ties go to the lower rank. Raises ValueError for more parts than there is.
    """
    num_parts = len(proportions)
    if total < num_parts:
        raise ValueError(f"{total} cannot be cut into {num_parts} parts; use fewer devices")
    spare = total - num_parts
    weight = sum(proportions)
    ideal = [max(0.0, total * p / weight - 1) for p in proportions]
    scale = spare / sum(ideal) if sum(ideal) > 0 else 0.0
    exact = [1 + value * scale for value in ideal]
    sizes = [int(value) for value in exact]
    by_remainder = sorted(range(num_parts), key=lambda i: (-(exact[i] - sizes[i]), i))
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    ranges, start = [], 0
    for size in sizes:
        ranges.append((start, start + size))
        start += size
    return ranges


def split_in_units(total: int, unit: int, proportions: Sequence[float]) -> list[Range]:
    """As `split_proportional`, cut at multiples of `unit`, of which `total` is one."""
    ranges = split_proportional(total // unit, proportions)
    return [(first * unit, last * unit) for first, last in ranges]


def tensor_parallel(config: ModelConfig, proportions: Sequence[float], group: int = 1) -> Plan:
    """Every device owns some heads and FFN columns of every layer (paper, section 3.1).

    Both are cut at multiples of `group` columns of the matrices that take them in. Raises
    ValueError for more devices than there are pieces.
    """
    num_devices = len(proportions)
    head_unit = group // math.gcd(config.head_dim, group)  # whole groups of the heads' values
    for pieces, what, whole in (
        (config.num_heads // head_unit, "attention heads", f"{config.num_heads}"),
        (config.intermediate // group, "FFN columns", f"{config.intermediate}"),
    ):
        if num_devices > pieces:
            cut = "" if str(pieces) == whole else f", which {group}-value groups cut in {pieces}"
            raise ValueError(
                f"testbed.num_devices={num_devices} is more than the model's {whole} {what}{cut}; "
                f"tensor parallelism takes 1 to {pieces} devices"
            )
    heads = split_in_units(config.num_heads, head_unit, proportions)
    columns = split_in_units(config.intermediate, group, proportions)
    shards = []
    for rank in range(num_devices):
        first, last = heads[rank]
        kv_heads = (first // config.group, (last - 1) // config.group + 1)
        own: list[Shard] = []
        for layer in range(config.num_layers):
            own.append(
                Shard(
                    kind="attn",
                    layer=layer,
                    heads=heads[rank],
                    kv_heads=kv_heads,
                    adds_bias=rank == 0,
                )
            )
            own.append(Shard(kind="ffn", layer=layer, columns=columns[rank], adds_bias=rank == 0))
        shards.append(_with_ends(rank, own))
    return Plan(scheme="tensor", shards=tuple(shards))


def layer_parallel(config: ModelConfig, proportions: Sequence[float]) -> Plan:
    """Every device owns some consecutive whole layers, in the order of ranks."""
    num_devices = len(proportions)
    if num_devices > config.num_layers:
        raise ValueError(
            f"testbed.num_devices={num_devices} is more than the model's {config.num_layers} "
            f"layers; system=pipeline takes 1 to {config.num_layers} devices"
        )
    ranges = split_proportional(config.num_layers, proportions)
    stages = [(rank, first, last) for rank, (first, last) in enumerate(ranges)]
    return layer_chain(config, stages, num_devices)


def layer_chain(
    config: ModelConfig, stages: Sequence[tuple[int, int, int]], num_devices: int
) -> Plan:
    """Layers [first, last) on a rank for each stage, in the order of the layers.

    A rank may have several stages; the chain names it once, where it comes first.
    """
    heads, kv_heads = (0, config.num_heads), (0, config.num_kv_heads)
    own: list[list[Shard]] = [[] for _ in range(num_devices)]
    for rank, first, last in stages:
        for layer in range(first, last):
            own[rank].append(Shard(kind="attn", layer=layer, heads=heads, kv_heads=kv_heads))
            own[rank].append(Shard(kind="ffn", layer=layer, columns=(0, config.intermediate)))
    chain = tuple(dict.fromkeys(rank for rank, _, _ in stages))
    shards = tuple(
        _with_ends(rank, own[rank]) if rank in chain else () for rank in range(num_devices)
    )
    return Plan(scheme="layers", shards=shards, chain=chain)


def _with_ends(rank: int, own: list[Shard]) -> tuple[Shard, ...]:
    """The master alone holds the input embedding and the output head."""
    return (Shard(kind="input"), *own, Shard(kind="output")) if rank == 0 else tuple(own)
