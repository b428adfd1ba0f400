"""What lies between two devices, said once more: from the settings, without `tpi_bench.virtual`.

So that both sides have not copied one mistake. All rates are finite here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isclose

from tpi_bench.contract.network import NetworkConfig


@dataclass(frozen=True)
class Leg:
    """Part of a way: a port and the way behind it.

    `port` names who must share: of two legs with one port, one waits for the other. `is_stored`:
    what follows waits for the whole message.
    """

    port: str
    bytes_per_s: float
    latency_s: float
    is_stored: bool = False


Ways = Mapping[tuple[int, int], tuple[Leg, ...]]


def ways_of(network: NetworkConfig, num_ranks: int) -> Ways:
    """From each rank to each other."""
    if network.topology == "mesh":
        return _mesh(network, num_ranks)
    pairs = itertools.permutations(range(num_ranks), 2)
    leg = _wifi_legs if network.topology == "wifi" else _switch_legs
    return {(src, dst): leg(network, src, dst) for src, dst in pairs}


def bytes_per_s(mbps: float) -> float:
    if not mbps:
        raise ValueError("a rate of 0 (unlimited) is no case for SimGrid; give one")
    return mbps * 1e6 / 8


def station_mbps(network: NetworkConfig, rank: int) -> float:
    """To the access point. Two stations that are alike have half of it between them."""
    return network.station_mbps[rank] if network.station_mbps else 2 * network.bandwidth_mbps


def _switch_legs(network: NetworkConfig, src: int, dst: int) -> tuple[Leg, ...]:
    if network.topology == "wan":
        assert network.latency_matrix_ms is not None
        latency_ms = network.latency_matrix_ms[src][dst]
    else:
        hops = {"switch": 2, "paper": 4}[network.topology]
        latency_ms = hops * network.link_latency_ms
    rate = bytes_per_s(network.bandwidth_mbps)
    return Leg(f"up {src}", rate, latency_ms / 1e3), Leg(f"down {dst}", rate, 0.0)


def _wifi_legs(network: NetworkConfig, src: int, dst: int) -> tuple[Leg, ...]:
    def leg(rank: int, *, is_stored: bool) -> Leg:
        own = network.station_latency_ms
        latency_ms = own[rank] if own else network.link_latency_ms
        rate = bytes_per_s(station_mbps(network, rank))
        return Leg("air", rate, latency_ms / 1e3, is_stored)

    return leg(src, is_stored=True), leg(dst, is_stored=False)


def _mesh(network: NetworkConfig, num_ranks: int) -> Ways:
    """The way of least latency by Floyd and Warshall.

    Raises ValueError where two are equally long: which is taken is a matter of taste.
    """
    far: dict[tuple[int, int], float] = {(a, a): 0.0 for a in range(num_ranks)}
    ways: dict[tuple[int, int], tuple[Leg, ...]] = {(a, a): () for a in range(num_ranks)}
    for a, b, latency_ms, mbps in network.mesh_links or []:
        for src, dst in ((int(a), int(b)), (int(b), int(a))):
            far[src, dst] = latency_ms
            leg = Leg(f"{src} to {dst}", bytes_per_s(mbps), latency_ms / 1e3)
            ways[src, dst] = (leg,)
    for by, src, dst in itertools.product(range(num_ranks), repeat=3):
        if (src, by) not in far or (by, dst) not in far:
            continue
        over, best = far[src, by] + far[by, dst], far.get((src, dst), inf)
        legs = (*ways[src, by], *ways[by, dst])
        if isclose(over, best) and legs != ways[src, dst]:
            raise ValueError(f"two ways from {src} to {dst} take {over:g} ms; change a latency")
        if over < best:
            far[src, dst], ways[src, dst] = over, legs
    return ways
