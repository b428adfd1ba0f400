"""What a token of a way takes at least, told at once from bytes and latencies, without running it.

`search.py` runs ways from the least bound on and skips those that cannot be better than what it has
found, so a bound is never above what virtual time makes of the way: only what is certain counts.
Each matrix is read once a token at the rate of its precision; a device reads at least what it
cannot hold, at the rate of its disk; and a sum waits for the way there and back. KV cache, most
operators, packing, and most of what ports pass are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.model import (
    BYTES_PER_VALUE,
    BYTES_PER_WEIGHT,
    ModelConfig,
    group_of,
    resolve_types,
)
from tpi_bench.contract.plan import Shard
from tpi_bench.engine.plans import split_proportional, tensor_parallel
from tpi_bench.engine.wire import wire_bytes
from tpi_bench.measure.household import Household
from tpi_bench.measure.links import Links
from tpi_bench.measure.shares import Hand, in_turns, piped, together
from tpi_bench.measure.ways import Way, proportions_of

# Of a layer: products with its matrices, and norms and residuals.
_LEAST_PRODUCTS, _LEAST_OTHERS = 4, 4


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Of a token: `token_s` at least, of which so much are weights out of memory one after another,
    messages on their way, and weights off a disk (which may come meanwhile).

    `lacking_bytes` above 0 cannot be held, whatever is done.
    """

    token_s: float
    weights_s: float
    links_s: float
    disk_s: float
    lacking_bytes: float = 0.0

    @property
    def limited_by(self) -> str:
        """`disk`, `links` or `memory`, whose rate weights are read at."""
        if self.disk_s >= max(self.weights_s + self.links_s, 1e-12):
            return "disk"
        return "links" if self.links_s > self.weights_s else "memory"


class _Load(NamedTuple):
    """What a device takes for its part of a token: layers and head out of memory, and its disk.

    `late_s` is what its disk takes for what cannot have been read ahead when its turn begins.
    """

    nbytes: float  # of layers
    layers_s: float
    head_s: float
    disk_s: float
    late_s: float


class Bounds:
    """Of all ways of a household with one model. Parts that ways share are worked out once."""

    def __init__(self, household: Household, config: ModelConfig, dtype: str = "auto") -> None:
        self._household = household
        self._config = config
        self._dtype = dtype
        self._one_layer = replace(config, num_layers=1)
        self._parts = functools.cache(self._parts_of)
        self._links = functools.cache(self._links_of)

    def of(self, way: Way) -> Bound:
        """Raises ValueError for what cannot be divided so."""
        if way.scheme == "unknown":
            return Bound(token_s=0.0, weights_s=0.0, links_s=0.0, disk_s=0.0)
        if way.scheme == "tensor":
            return self._tensor(way)
        if way.scheme == "layers":
            return self._layers(way)
        if way.scheme == "groups":
            return self._groups(way)
        if way.scheme == "ring":
            return self._ring(way)
        return self._planned(way)

    def _tensor(self, way: Way) -> Bound:
        shares = tuple(proportions_of(self._household, way.team, way.shares))
        loads = [
            self._loaded(way, rank, nbytes, self._config.num_layers)
            for rank, nbytes in enumerate(self._parts(shares, way.weights))
        ]
        head_s, disk_s = loads[0].head_s, max(load.disk_s for load in loads)
        weights_s = max(load.layers_s for load in loads)
        waits_s = [load.layers_s for load in loads]
        if way.setting("loading") == "blocking":  # one after the other
            waits_s = [load.layers_s + load.disk_s for load in loads]
        sums_s = max(waits_s)
        if len(way.team) > 1:
            links = self._links(way.team, self._message(way))
            num_sums = 2 * self._config.num_layers
            sums_s = links.sums_s(way.setting("collective", "star"), waits_s, num_sums)
        return Bound(
            token_s=max(max(waits_s) + head_s, sums_s + head_s, disk_s),
            weights_s=weights_s + head_s,
            links_s=max(0.0, sums_s - max(waits_s)),
            disk_s=disk_s,
            lacking_bytes=self._lacking(way, loads),
        )

    def _layers(self, way: Way) -> Bound:
        config = self._config
        numbers = proportions_of(self._household, way.team, way.shares)
        layer = config.layer_parameters * BYTES_PER_WEIGHT[way.weights]
        loads = [
            self._loaded(way, rank, layer * (last - first), last - first)
            for rank, (first, last) in enumerate(split_proportional(config.num_layers, numbers))
        ]
        head_s = loads[0].head_s
        turns_s = sum(max(load.layers_s, load.late_s) for load in loads)
        links_s = self._links(way.team, self._message(way)).round_s() if len(loads) > 1 else 0.0
        disk_s = max(load.disk_s for load in loads)
        return Bound(
            token_s=max(turns_s + head_s + links_s, disk_s),
            weights_s=sum(load.layers_s for load in loads) + head_s,
            links_s=links_s,
            disk_s=max(disk_s, sum(load.late_s for load in loads)),
            lacking_bytes=self._lacking(way, loads),
        )

    def _groups(self, way: Way) -> Bound:
        """Layers by groups, in turns; a layer's matrices among a group's devices."""
        config, size = self._config, way.setting("group_size")
        shares = proportions_of(self._household, way.team, way.shares)
        teams = [range(first, first + size) for first in range(0, len(shares), size)]
        spans = split_proportional(
            config.num_layers, [sum(shares[rank] for rank in team) for team in teams]
        )
        loads = []
        for team, (first, last) in zip(teams, spans, strict=True):
            parts = self._parts(tuple(shares[rank] for rank in team), way.weights)
            part = (last - first) / config.num_layers
            loads += [
                self._loaded(way, rank, nbytes * part, last - first)
                for rank, nbytes in zip(team, parts, strict=True)
            ]
        # While the slowest of a group computes, the others' messages may be on their way.
        quickest_s = sum(min(loads[rank].layers_s for rank in team) for team in teams)
        slowest_s = sum(
            max(max(loads[rank].layers_s, loads[rank].late_s) for rank in team) for team in teams
        )
        links = self._links(way.team, self._message(way))
        steps = 1 if way.setting("collective") == "direct" else 2
        num_steps = len(teams) + steps * (2 * config.num_layers - len(teams))
        links_s, head_s = num_steps * links.least_hop_s, loads[0].head_s
        disk_s = max(load.disk_s for load in loads)
        return Bound(
            token_s=max(max(slowest_s, quickest_s + links_s) + head_s, disk_s),
            weights_s=sum(max(loads[rank].layers_s for rank in team) for team in teams) + head_s,
            links_s=links_s,
            disk_s=disk_s,
            lacking_bytes=self._lacking(way, loads),
        )

    def _ring(self, way: Way) -> Bound:
        """Layers in turns, as its planner chooses, with all disks at work meanwhile."""
        config, profiles = self._config, [self._profile(way, r) for r in range(len(way.team))]
        nbytes = config.num_layers * config.layer_parameters * BYTES_PER_WEIGHT[way.weights]
        head_s = self._head_bytes(way.weights) / profiles[0].read_bps(way.weights)
        hands = [
            Hand(
                room=profile.memory_bytes + self._area_bytes(way.weights),
                memory_bps=profile.read_bps(way.weights),
                disk_bps=profile.disk_bps,
            )
            for profile in profiles
        ]
        hops_s = 2 * self._links(way.team, self._message(way)).least_hop_s
        together_s, alone_s = piped(hands, nbytes), piped(hands[:1], nbytes)
        lacking = max(0.0, nbytes - sum(hand.room for hand in hands))
        return Bound(
            token_s=min(alone_s, together_s + hops_s) + head_s,
            weights_s=nbytes / max(hand.memory_bps for hand in hands) + head_s,
            links_s=hops_s if together_s + hops_s < alone_s else 0.0,
            disk_s=lacking / sum(hand.disk_bps for hand in hands),
        )

    def _planned(self, way: Way) -> Bound:
        """Whatever its planner chooses: a chain over some of the devices, or Galaxy's shares."""
        config, profiles = self._config, [self._profile(way, r) for r in range(len(way.team))]
        nbytes = config.num_layers * config.layer_parameters * BYTES_PER_WEIGHT[way.weights]
        head = self._head_bytes(way.weights)
        head_s = head / profiles[0].read_bps(way.weights)
        is_held = _holds_all(way)
        hands = [
            Hand(
                room=profile.memory_bytes + (0 if is_held else self._area_bytes(way.weights)),
                memory_bps=profile.read_bps(way.weights),
                disk_bps=0.0 if is_held else profile.disk_bps,
            )
            for profile in profiles
        ]
        held = sum(hand.room for hand in hands)
        links = self._links(way.team, self._message(way)) if len(profiles) > 1 else None
        deal = together if way.scheme == "galaxy" else in_turns
        lacking = nbytes - held
        weights_s = 0.0 if is_held and lacking > 0 else deal(hands, nbytes).token_s
        links_s, later_s = 0.0, weights_s
        if links is not None and way.scheme == "galaxy":
            # Every other device has the master's tile after some hops, and the rest are behind it;
            # meanwhile the master may compute its own part.
            links_s = 2 * config.num_layers * len(profiles) * links.least_hop_s
            rates = [hand.memory_bps for hand in hands]
            later_s = max(0.0, nbytes - links_s * rates[0]) / sum(rates)
        elif links is not None and is_held and nbytes > hands[0].room:
            links_s = 2 * links.least_hop_s
        return Bound(
            token_s=max(links_s + later_s, weights_s) + head_s,
            weights_s=weights_s + head_s,
            links_s=links_s,
            disk_s=0.0 if is_held else max(0.0, lacking) / sum(hand.disk_bps for hand in hands),
            lacking_bytes=max(0.0, lacking) if is_held else 0.0,
        )

    def _parts_of(self, shares: tuple[float, ...], weights: str) -> list[float]:
        """Bytes of all layers' matrices on each device, under tensor parallelism."""
        plan = tensor_parallel(self._one_layer, shares, group_of(weights))
        factor = self._config.num_layers * BYTES_PER_WEIGHT[weights]
        return [
            factor * sum(shard_values(self._config, shard) for shard in shards)
            for shards in plan.shards
        ]

    def _loaded(self, way: Way, rank: int, nbytes: float, num_layers: int) -> _Load:
        """Of a device that has so many bytes of so many layers."""
        profile, weights = self._profile(way, rank), way.weights
        rate, head = profile.read_bps(weights), 0.0 if rank else self._head_bytes(weights)
        operators_s = _LEAST_PRODUCTS * profile.overhead_s("float32", "product")
        operators_s += _LEAST_OTHERS * profile.overhead_s("float32")
        streamed = max(0.0, nbytes + head - profile.memory_bytes)
        window = 1 if way.setting("loading") == "blocking" else way.setting("window")
        if isinstance(window, int) and window and not way.setting("retain_every"):
            # What is in the window when the first token ends is not read for the second.
            num_blocks = 2 * num_layers
            streamed = nbytes * max(0, num_blocks - 2 * window - 2) / num_blocks
        late = min(streamed, nbytes - profile.memory_bytes) - self._area_bytes(weights)
        return _Load(
            nbytes=nbytes,
            layers_s=nbytes / rate + num_layers * operators_s,
            head_s=head / rate,
            disk_s=streamed / profile.disk_bps,
            late_s=max(0.0, late) / profile.disk_bps,
        )

    def _area_bytes(self, weights: str) -> float:
        """Most that a device with `window=auto` reads ahead (`engine/budget.py`): its largest block
        and what comes while that is computed, twice.
        """
        config = self._config
        largest = config.hidden * max(3 * config.intermediate, config.vocab)
        return 1.25 * largest * BYTES_PER_WEIGHT[weights] + (64 << 20)

    def _lacking(self, way: Way, loads: Sequence[_Load]) -> float:
        """Bytes that the neediest device cannot hold, where it has to hold all."""
        if not _holds_all(way):
            return 0.0
        ends = self._config.end_parameters * BYTES_PER_WEIGHT[way.weights]
        return max(
            load.nbytes + (0 if rank else ends) - self._profile(way, rank).memory_bytes
            for rank, load in enumerate(loads)
        )

    def _head_bytes(self, weights: str) -> float:
        return self._config.vocab * self._config.hidden * BYTES_PER_WEIGHT[weights]

    def _message(self, way: Way) -> int:
        """Bytes of a hidden state, as they are sent."""
        dtype, _ = resolve_types(self._dtype, way.weights)
        wire = way.setting("wire", "auto")
        return wire_bytes(wire, self._config.hidden, BYTES_PER_VALUE[dtype])

    def _links_of(self, team: tuple[int, ...], nbytes: int) -> Links:
        return Links.of(self._household, team, nbytes)

    def _profile(self, way: Way, rank: int) -> DeviceProfile:
        return self._household.profiles[way.team[rank]]


def _holds_all(way: Way) -> bool:
    """Whether its devices need memory for all their weights."""
    window = way.setting("window", "off")
    return window in ("off", False, None) and way.setting("loading", "overlapped") == "overlapped"


def shard_values(config: ModelConfig, shard: Shard) -> int:
    """Values of a shard's matrices; those of the ends are not of a layer."""
    heads, kv_heads = shard.heads[1] - shard.heads[0], shard.kv_heads[1] - shard.kv_heads[0]
    if shard.kind == "attn":
        return config.hidden * config.head_dim * 2 * (heads + kv_heads)
    if shard.kind == "ffn":
        return 3 * config.hidden * (shard.columns[1] - shard.columns[0])
    return 0
