"""How each topology carries messages: the ports between two devices, and who shares them.

A port passes one message at a time: whoever sends through the same port waits for the others.

- `Switch` (`none`, `switch` and `paper`): every device has an up-link, which all that it sends
  shares, and a down-link, which all that is sent to it shares. Between them there is room for all.
- `Wifi`: one channel, which everything shares. A message crosses it twice: to the access point, at
  the sender's rate, which receives it whole, and from there, when its turn comes again, to the
  receiver at the receiver's.
- `Wan`: links as of `Switch`; how far apart two devices are is in a table.
- `Mesh`: a port a direction of each link, which all ways over that link share, those of messages
  that only pass by included.

`network.py` moves the messages. A new topology is a class here and its name in TOPOLOGIES at the
end; the same name in HOPS or TABLES of `contract/network.py` (and in VIRTUAL_ONLY there, unless
links of `processes/` emulate it) with its settings and their check; and one YAML in
`conf/network/`.
"""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from tpi_bench.contract.network import NetworkConfig


@dataclass(slots=True)
class Port:
    """Passes one message at a time."""

    free_ns: int = 0


class Hop(NamedTuple):
    """A port, for how long a message takes it, and the way behind it.

    `ns_per_byte` 0: any number passes at once. `is_stored`: what follows waits for the whole
    message. `jitter_parts`: into how many hops a message's jitter is divided, of which this is one;
    0 where there is none. `is_own`: only what its sender sends passes this port, and a port that
    takes time follows.
    """

    port: Port
    ns_per_byte: float
    latency_ns: int
    is_stored: bool = False
    jitter_parts: int = 0
    is_own: bool = False


class Topology(ABC):
    """Made for each run with its settings. Raises ValueError when they do not fit the devices."""

    @abstractmethod
    def __init__(self, network: NetworkConfig, num_devices: int) -> None: ...

    @abstractmethod
    def hops(self, src: int, dst: int) -> tuple[Hop, ...]:
        """From one device to another, in order. Asked once for each pair."""


class Switch(Topology):
    """Up-link, the way of a bit, down-link; nothing waits for a whole message."""

    def __init__(self, network: NetworkConfig, num_devices: int) -> None:
        self._one_way_ns = network.one_way_ns
        self._jitter_parts = 1 if network.jitter_ms else 0
        self._ns_per_byte = _ns_per_byte(network.bandwidth_mbps)
        self._ups = [Port() for _ in range(num_devices)]
        self._downs = [Port() for _ in range(num_devices)]

    def hops(self, src: int, dst: int) -> tuple[Hop, ...]:
        latency_ns, cost = self.latency_ns(src, dst), self._ns_per_byte
        jitter_parts, is_own = self._jitter_parts, cost > 0
        up = Hop(self._ups[src], cost, latency_ns, jitter_parts=jitter_parts, is_own=is_own)
        return up, Hop(self._downs[dst], cost, 0)

    def latency_ns(self, src: int, dst: int) -> int:
        """How long a bit travels."""
        return self._one_way_ns


class Wan(Switch):
    """Links as of a switch; latencies by pair and direction."""

    def __init__(self, network: NetworkConfig, num_devices: int) -> None:
        super().__init__(network, num_devices)
        self._matrix_ms = network.latency_matrix_ms or []
        if len(self._matrix_ms) < num_devices:
            raise ValueError(
                f"network.latency_matrix_ms has {len(self._matrix_ms)} rows, but there are "
                f"{num_devices} devices; give a row for each"
            )

    def latency_ns(self, src: int, dst: int) -> int:
        return round(self._matrix_ms[src][dst] * 1e6)


class Wifi(Topology):
    """One channel for both directions and all devices; half of the jitter at each crossing."""

    def __init__(self, network: NetworkConfig, num_devices: int) -> None:
        self._air = Port()
        self._jitter_parts = 2 if network.jitter_ms else 0
        alike = _ns_per_byte(2 * network.bandwidth_mbps)
        mbps, latencies_ms = network.station_mbps, network.station_latency_ms
        for name, given in (("station_mbps", mbps), ("station_latency_ms", latencies_ms)):
            if given is not None and len(given) < num_devices:
                raise ValueError(
                    f"network.{name} has {len(given)} numbers, but there are {num_devices} "
                    "devices; give one for each"
                )
        self._costs = [_ns_per_byte(rate) for rate in mbps] if mbps else [alike] * num_devices
        shared = [network.link_latency_ms] * num_devices
        self._latencies_ns = [round(ms * 1e6) for ms in latencies_ms or shared]

    def hops(self, src: int, dst: int) -> tuple[Hop, ...]:
        to_access_point = Hop(
            self._air,
            self._costs[src],
            self._latencies_ns[src],
            is_stored=True,
            jitter_parts=self._jitter_parts,
        )
        from_there = Hop(
            self._air, self._costs[dst], self._latencies_ns[dst], jitter_parts=self._jitter_parts
        )
        return to_access_point, from_there


class Mesh(Topology):
    """Full-duplex links; a message takes the way of least latency."""

    def __init__(self, network: NetworkConfig, num_devices: int) -> None:
        links: dict[tuple[int, int], Hop] = {}
        for a, b, latency_ms, mbps in network.mesh_links or []:
            for pair in ((int(a), int(b)), (int(b), int(a))):
                links[pair] = Hop(Port(), _ns_per_byte(mbps), round(latency_ms * 1e6))
        self._ways: dict[tuple[int, int], tuple[Hop, ...]] = {}
        for src in range(num_devices):
            routes = _routes(links, src)
            for dst in range(num_devices):
                if dst not in routes:
                    raise ValueError(
                        f"network.mesh_links has no way from device {src} to device {dst}; "
                        "add a link"
                    )
                pairs = itertools.pairwise(routes[dst])
                self._ways[src, dst] = tuple(links[pair] for pair in pairs)

    def hops(self, src: int, dst: int) -> tuple[Hop, ...]:
        return self._ways[src, dst]


def _routes(links: dict[tuple[int, int], Hop], source: int) -> dict[int, tuple[int, ...]]:
    """Dijkstra: target -> the devices on the way, both ends included.

    Ties go to fewer hops, then to lower ranks.
    """
    best: dict[int, tuple[int, ...]] = {}
    queue: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, (source,))]
    while queue:
        latency_ns, num_hops, route = heapq.heappop(queue)
        if route[-1] in best:
            continue
        best[route[-1]] = route
        for (a, b), hop in links.items():
            if a == route[-1] and b not in best:
                heapq.heappush(queue, (latency_ns + hop.latency_ns, num_hops + 1, (*route, b)))
    return best


def _ns_per_byte(mbps: float) -> float:
    return 8e3 / mbps if mbps else 0.0


TOPOLOGIES: dict[str, type[Topology]] = {
    "none": Switch,
    "switch": Switch,
    "paper": Switch,
    "wifi": Wifi,
    "wan": Wan,
    "mesh": Mesh,
}
