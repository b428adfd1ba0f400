"""Plans: which device owns which heads, FFN columns or layers. Pure arithmetic, no torch.

The words are those of TPI-LLM (arXiv 2410.00531, section 3.1): attention heads and FFN columns are
divided in proportions p_i; KV heads are never cut, so a KV head lives wherever one of its query
heads lives. A plan lists, for every rank, its shards in the order in which a token visits them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tpi_bench.links import NetworkConfig
from tpi_bench.profiles import DeviceProfile

Kind = Literal["input", "attn", "ffn", "output"]
Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One device's part of one block. Ranges are half open; `layer` is -1 for input and output."""

    kind: Kind
    layer: int = -1
    heads: Range = (0, 0)
    kv_heads: Range = (0, 0)
    columns: Range = (0, 0)
    adds_bias: bool = True  # output biases are added once, by the device that holds the first head


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a plan is to run, and for what: what a planner may look at.

    `devices` are known in virtual time; `memory_bytes` where devices have memory of their own, or a
    cap. `num_positions` is the longest that prompt and answer get, for the KV cache.
    """

    proportions: Sequence[float]
    devices: tuple[DeviceProfile, ...] = ()
    memory_bytes: tuple[int, ...] | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    bytes_per_value: int = 4
    num_positions: int = 1

    @property
    def num_devices(self) -> int:
        return len(self.proportions)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`shards[rank]` in execution order; rank 0 is the master and owns input and output.

    `chain` are the ranks that the layers of a pipeline pass, the master first; others are idle.
    """

    scheme: Literal["tensor", "layers"]
    shards: tuple[tuple[Shard, ...], ...]
    chain: tuple[int, ...] = ()

    @property
    def num_devices(self) -> int:
        return len(self.shards)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


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


def check_proportions(num_devices: int, proportions: Sequence[float] | None) -> list[float]:
    """The proportions in force: equal ones, or the given ones once they are known to make sense."""
    if proportions is None:
        return [1.0] * num_devices
    if len(proportions) != num_devices or any(not p > 0 for p in proportions):
        raise ValueError(
            f"testbed.proportions={list(proportions)} must hold {num_devices} positive numbers, "
            f"one a device (testbed.num_devices={num_devices})"
        )
    return [float(p) for p in proportions]


def tensor_parallel(
    *,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    intermediate: int,
    proportions: Sequence[float],
) -> Plan:
    """Every device owns some heads and FFN columns of every layer (paper, section 3.1)."""
    num_devices = len(proportions)
    if num_devices > num_heads:
        raise ValueError(
            f"testbed.num_devices={num_devices} is more than the model's {num_heads} "
            "attention heads; "
            f"tensor parallelism takes 1 to {num_heads} devices"
        )
    heads = split_proportional(num_heads, proportions)
    columns = split_proportional(intermediate, proportions)
    group = num_heads // num_kv_heads
    shards = []
    for rank in range(num_devices):
        first, last = heads[rank]
        kv_heads = (first // group, (last - 1) // group + 1)
        own: list[Shard] = []
        for layer in range(num_layers):
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


def layer_parallel(
    *,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    intermediate: int,
    proportions: Sequence[float],
) -> Plan:
    """Every device owns some consecutive whole layers, in the order of ranks."""
    num_devices = len(proportions)
    if num_devices > num_layers:
        raise ValueError(
            f"testbed.num_devices={num_devices} is more than the model's {num_layers} layers; "
            f"system=pipeline takes 1 to {num_layers} devices"
        )
    ranges = split_proportional(num_layers, proportions)
    return layer_chain(
        [(rank, first, last) for rank, (first, last) in enumerate(ranges)],
        num_devices=num_devices,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate=intermediate,
    )


def layer_chain(
    stages: Sequence[tuple[int, int, int]],
    *,
    num_devices: int,
    num_heads: int,
    num_kv_heads: int,
    intermediate: int,
) -> Plan:
    """Layers [first, last) on a rank for each stage, in the order of the layers."""
    shards: list[tuple[Shard, ...]] = [()] * num_devices
    for rank, first, last in stages:
        own = []
        for layer in range(first, last):
            own.append(
                Shard(kind="attn", layer=layer, heads=(0, num_heads), kv_heads=(0, num_kv_heads))
            )
            own.append(Shard(kind="ffn", layer=layer, columns=(0, intermediate)))
        shards[rank] = _with_ends(rank, own)
    chain = tuple(rank for rank, _, _ in stages)
    return Plan(scheme="layers", shards=tuple(shards), chain=chain)


def _with_ends(rank: int, own: list[Shard]) -> tuple[Shard, ...]:
    """The master alone holds the input embedding and the output head."""
    return (Shard(kind="input"), *own, Shard(kind="output")) if rank == 0 else tuple(own)


def head_groups(heads: Range, kv_heads: Range, group: int) -> list[list[int]]:
    """For each local KV head, the local indices of its query heads, padded to one length.

    A device may own only part of a KV head's group (9 heads on 2 devices); repeating its last
    query head makes the groups equal, so that one batched product serves them all.
    """
    first, last = heads
    groups = []
    for kv_head in range(*kv_heads):
        members = range(max(first, kv_head * group), min(last, (kv_head + 1) * group))
        groups.append([head - first for head in members])
    longest = max(len(members) for members in groups)
    return [members + members[-1:] * (longest - len(members)) for members in groups]


def split_positions(num_new: int, num_devices: int) -> list[Range]:
    """Consecutive positions a device, as even as can be; the first devices get what is over."""
    base, over = divmod(num_new, num_devices)
    ends = list(itertools.accumulate(base + (rank < over) for rank in range(num_devices)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def tree_groups(world_size: int) -> list[list[int]]:
    """Workers in about sqrt(N - 1) consecutive groups; the first of each is its head."""
    workers = list(range(1, world_size))
    num_groups = max(1, round(math.sqrt(len(workers)))) if workers else 0
    cuts = [len(workers) * i // num_groups for i in range(num_groups + 1)] if num_groups else []
    return [workers[a:b] for a, b in itertools.pairwise(cuts)]


def place_blocks(sizes: Sequence[int], window: int, alignment: int = 4096) -> tuple[list[int], int]:
    """Fixed addresses for blocks that stream through one memory area, and the area's size.

    Blocks are visited cyclically and at most `window` consecutive ones are held at once, so two
    blocks may share addresses only when they are at least `window` steps apart in both directions.
    Every block keeps one address for the whole run: nothing is allocated or re-viewed per load.
    Largest first, lowest free address; the area is then the paper's peak (Proposition 5).
    """
    count = len(sizes)
    rounded = [-(-size // alignment) * alignment for size in sizes]
    offsets = [-1] * count
    for block in sorted(range(count), key=lambda i: (-rounded[i], i)):
        near = {(block + d) % count for d in range(1 - window, window)} - {block}
        taken = sorted((offsets[i], offsets[i] + rounded[i]) for i in near if offsets[i] >= 0)
        address = 0
        for start, stop in taken:
            if address + rounded[block] <= start:
                break
            address = max(address, stop)
        offsets[block] = address
    return offsets, max((o + r for o, r in zip(offsets, rounded, strict=True)), default=0)
