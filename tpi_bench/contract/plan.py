"""Who owns what: `Shard` and `Plan`; `Site` is what a planner may look at.

The words are those of TPI-LLM (arXiv 2410.00531, section 3.1): attention heads and FFN columns are
divided in proportions p_i; KV heads are never cut, so a KV head lives wherever one of its query
heads lives. `engine/plans.py` makes plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.model import BYTES_PER_WEIGHT, group_of

Kind = Literal["input", "attn", "ffn", "output"]
Range = tuple[int, int]


class DoesNotFit(ValueError):
    """The devices' memory is too small, as is known before anything runs; `oom` in a sweep."""


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

    `profiles` are known in virtual time, and where a planner asks for them; `memory_bytes` where
    devices have memory of their own, or a cap. `num_positions` is the longest that prompt and
    answer get, for the KV cache. `bytes_per_value` is that of hidden states and the KV cache,
    `weights` what matrices are held in.
    `transfers_s(nbytes)[a][b]` are the seconds that a message of so many bytes takes from device a
    to device b when it is alone.
    """

    proportions: Sequence[float]
    profiles: tuple[DeviceProfile, ...] = ()
    memory_bytes: tuple[int, ...] | None = None
    bytes_per_value: int = 4
    weights: str = "float32"
    num_positions: int = 1
    transfers_s: Callable[[int], Sequence[Sequence[float]]] | None = None

    @property
    def num_devices(self) -> int:
        return len(self.proportions)

    @property
    def bytes_per_weight(self) -> float:
        """Of one value of a matrix."""
        return BYTES_PER_WEIGHT[self.weights]

    @property
    def group(self) -> int:
        """Matrices are cut at multiples of so many columns."""
        return group_of(self.weights)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`shards[rank]` in execution order; rank 0 is the master and owns input and output.

    `chain` are the ranks that the layers of a pipeline pass, the master first; others are idle.
    """

    scheme: Literal["tensor", "layers", "hybrid"]
    shards: tuple[tuple[Shard, ...], ...]
    chain: tuple[int, ...] = ()

    @property
    def num_devices(self) -> int:
        return len(self.shards)

    @property
    def teams(self) -> list[list[int]]:
        """Ranks that share layers, and so compute at the same time; the teams work in turns."""
        found: dict[frozenset[int], list[int]] = {}
        for rank, shards in enumerate(self.shards):
            layers = frozenset(shard.layer for shard in shards if shard.layer >= 0)
            found.setdefault(layers, []).append(rank)
        return list(found.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
