"""Which consecutive layers go to which device: the planners of `pipeline` and `prima`.

One function each, from what is known of the devices to how many layers each gets, in the order in
which a token passes them. Pure arithmetic. EdgeShard's and Halda's have files of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baselines.edgeshard import Stage, plan_stages
from baselines.halda import RingDevice, RingPlan, plan_ring
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import DoesNotFit, Site
from tpi_bench.engine.plans import split_proportional
from tpi_bench.engine.wire import wire_bytes

OPERATORS = 23  # of a layer in decoding: 14 in attention, 7 in the FFN, 2 residuals
_SLOW_DISK_BPS = 0.1e9  # prima.cpp streams from no slower one
_HALVINGS = 60

Part = tuple[int, int]  # a device, and how many layers it gets


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What a planner is told: layers that are alike, and devices to divide them over.

    `streams`: whether a device may have more than its memory holds.
    """

    config: ModelConfig
    site: Site
    wire: str
    streams: bool
    num_layers: int
    rounds: int = 1  # a token passes the devices so often, each time through so many layers

    @property
    def layer_bytes(self) -> float:
        """Of weights."""
        return self.config.layer_parameters * self.site.bytes_per_weight

    @property
    def held_bytes(self) -> float:
        """Of a layer with its KV cache."""
        cache = self.config.cache_values(self.site.num_positions) * self.site.bytes_per_value
        return self.layer_bytes + cache

    def rooms(self) -> list[float]:
        """Layers of a round that each device's memory holds; infinite where it is not known.

        The master holds the ends of the model too; what streams looks its embedding up.
        """
        memory = self.site.memory_bytes
        if memory is None:
            return [math.inf] * self.site.num_devices
        ends = self.config.end_parameters
        if self.streams:
            ends = self.config.vocab * self.config.hidden
        own = [
            room - (0 if rank else ends * self.site.bytes_per_weight)
            for rank, room in enumerate(memory)
        ]
        return [max(0.0, room) / self.held_bytes / self.rounds for room in own]

    def layer_s(self) -> list[float]:
        """Seconds of a layer on each device, in decoding: its bytes at the rate of its memory."""
        return [
            round(self.layer_bytes) / profile.read_bps(self.site.weights)
            + OPERATORS * profile.op_overhead_us * 1e-6
            for profile in self.site.profiles
        ]

    def moves_s(self) -> list[list[float]]:
        """Seconds for a hidden state from each device to each: on links, and in both devices."""
        assert self.site.transfers_s is not None
        nbytes = wire_bytes(self.wire, self.config.hidden, self.site.bytes_per_value)
        overheads = [profile.message_overhead_us * 1e-6 for profile in self.site.profiles]
        return [
            [seconds + overheads[a] + overheads[b] for b, seconds in enumerate(row)]
            for a, row in enumerate(self.site.transfers_s(nbytes))
        ]


def proportional(layers: Layers) -> list[Part]:
    """Even, or in given proportions, as in Petals; no device is left out."""
    ranges = split_proportional(layers.num_layers, layers.site.proportions)
    return [(rank, last - first) for rank, (first, last) in enumerate(ranges)]


def by_memory(layers: Layers) -> list[Part]:
    """In proportion to free memory, as exo divides; even where devices share a host's."""
    memory = layers.site.memory_bytes
    shares = [1.0] * layers.site.num_devices if memory is None else [float(m) for m in memory]
    ranges = split_proportional(layers.num_layers, shares)
    return [(rank, last - first) for rank, (first, last) in enumerate(ranges)]


def waterfill(layers: Layers) -> list[Part]:
    """Parallax's (arXiv 2509.26182): in proportion to speed, as far as each device's memory goes.

    The level is found by halving; whole layers are dealt by largest remainder. Devices may be left
    out, but not the master. What cannot be held at all is spread over all memories alike, where
    layers may be streamed. Raises DoesNotFit elsewhere.
    """
    total, capacities = layers.num_layers, layers.rooms()
    if not layers.streams:
        capacities = [
            float(math.floor(room + 1e-9)) if math.isfinite(room) else room for room in capacities
        ]
    if sum(capacities) < total:
        if not layers.streams:
            raise DoesNotFit(too_much(layers))
        held = sum(capacities) or 1.0
        capacities = [capacity * total / held for capacity in capacities]
    speeds = [1 / max(seconds, 1e-12) for seconds in layers.layer_s()]
    level = _level(capacities, speeds, total)
    exact = [min(c, level * speed) for c, speed in zip(capacities, speeds, strict=True)]
    counts = _whole(exact, capacities, total)
    if not counts[0]:
        largest = max(range(len(counts)), key=counts.__getitem__)
        counts[0], counts[largest] = 1, counts[largest] - 1
    return [(rank, count) for rank, count in enumerate(counts) if count]


def edgeshard(layers: Layers) -> list[Part]:
    """EdgeShard's (arXiv 2405.14371): the chain of least latency. Streamed layers come at the rate
    of the disk. Raises DoesNotFit.
    """
    count = layers.site.num_devices
    rooms, layer_s = [math.inf] * count, layers.layer_s()
    if layers.streams:
        layer_s = [
            max(seconds, layers.layer_bytes / profile.disk_bps)
            for seconds, profile in zip(layer_s, layers.site.profiles, strict=True)
        ]
    else:
        rooms = [room * layers.held_bytes for room in layers.rooms()]
    num = layers.num_layers
    stages, _ = plan_stages(
        [[seconds] * num for seconds in layer_s],
        [round(layers.held_bytes)] * num,
        rooms,
        layers.moves_s(),
    )
    return [(rank, last - first) for rank, first, last in stages]


def halda(layers: Layers) -> list[Part]:
    """prima.cpp's, for a token that passes every device once."""
    plan = halda_ring(layers, [1], "paper")
    return [(rank, count) for rank, count in enumerate(plan.windows) if count]


def halda_ring(
    layers: Layers, rounds: Sequence[int], objective: str, *, drops: bool = True
) -> RingPlan:
    """Windows and rounds of all the layers. Raises DoesNotFit."""
    assert layers.rounds == 1
    config, site = layers.config, layers.site
    flops, counts_all = 2 * config.layer_parameters, objective != "code"
    devices = []
    for profile, room in zip(site.profiles, layers.rooms(), strict=True):
        compute_s = flops / profile.flops_per_s(site.weights)
        if counts_all:
            compute_s += layers.held_bytes / profile.read_bps(site.weights)
            compute_s += OPERATORS * profile.op_overhead_us * 1e-6
        devices.append(
            RingDevice(
                compute_s=compute_s,
                load_s=layers.held_bytes / profile.disk_bps,
                room=room,
                streams=layers.streams and profile.disk_bps >= _SLOW_DISK_BPS,
            )
        )
    moves_s = layers.moves_s() if counts_all else []

    def hops_s(ranks: Sequence[int]) -> float:
        if len(ranks) == 1 or not counts_all:
            return 0.0
        return sum(moves_s[a][b] for a, b in zip(ranks, [*ranks[1:], ranks[0]], strict=True))

    found = plan_ring(
        devices,
        layers.num_layers,
        hops_s,
        rounds=rounds,
        overlap=objective == "overlap",
        drops=drops,
    )
    if found is None:
        raise DoesNotFit(too_much(layers))
    return found


PLANNERS: dict[str, Callable[[Layers], list[Part]]] = {
    "proportional": proportional,
    "edgeshard": edgeshard,
    "halda": halda,
    "waterfill": waterfill,
    "memory": by_memory,
}
OF_PROFILES = ("edgeshard", "halda", "waterfill")  # which ask what devices can do


def stages_of(parts: Sequence[Part]) -> list[Stage]:
    """Who has which layers, one part behind the other."""
    ends = list(itertools.accumulate(count for _, count in parts))
    return [(rank, end - count, end) for (rank, count), end in zip(parts, ends, strict=True)]


def check_planner(name: str) -> None:
    """Raises ValueError for a planner that is none of ours."""
    if name not in PLANNERS:
        raise ValueError(f"system.planner={name} is unknown; choose one of {', '.join(PLANNERS)}")


def _level(capacities: Sequence[float], speeds: Sequence[float], total: int) -> float:
    """How long water runs, until all devices together have so many layers."""
    low, high = 0.0, total / min(speeds)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        filled = sum(min(c, middle * v) for c, v in zip(capacities, speeds, strict=True))
        low, high = (low, middle) if filled >= total else (middle, high)
    return high


def _whole(exact: Sequence[float], capacities: Sequence[float], total: int) -> list[int]:
    """Whole numbers near `exact` that have this sum: the largest remainders are rounded up."""
    counts = [math.floor(value + 1e-9) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    while sum(counts) < total:
        free = [i for i in order if counts[i] + 1 <= math.ceil(capacities[i] - 1e-9)]
        for i in free[: total - sum(counts)]:
            counts[i] += 1
    return counts


def too_much(layers: Layers) -> str:
    whole = layers.held_bytes * layers.num_layers * layers.rounds
    rooms = (room * layers.held_bytes * layers.rounds / 1e9 for room in layers.rooms())
    return (
        f"{whole / 1e9:.2f} GB of layers do not fit in the devices' memory "
        f"({', '.join(f'{room:.2f}' for room in rooms)} GB); use a window (system.window=auto), "
        "more devices or more memory"
    )
