"""The virtual network: ports that messages pass on their way, in virtual time.

Every topology is a path of ports between two devices. A port passes one message at a time, first
come (by first bit), first served, at its own rate; bits flow through several ports at once
(cut-through), but an access point of a `wifi` channel receives a frame whole before it sends it on,
over the same channel. So flows that share a port wait for each other's whole messages: the mean is
that of a fair share, the order is not, and a small message behind a large one waits longer than
with packets in turns. Losses, retransmissions, TCP's slow start and Wi-Fi's contention for the
channel are left out.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from tpi_bench.links import NetworkConfig


class Clock(Protocol):
    """Virtual time in ns, and what is to happen when."""

    now_ns: int

    def at(self, time_ns: int, action: Callable[[], object]) -> None: ...


@dataclass
class Port:
    """Passes one message at a time. `ns_per_byte` 0 passes any number at once."""

    ns_per_byte: float
    free_ns: int = 0


@dataclass(frozen=True)
class Hop:
    """A port, the way behind it, and whether what follows waits for the whole message."""

    port: Port
    latency_ns: int
    is_stored: bool = False


Path = tuple[Hop, ...]
Deliver = Callable[[int], None]


class Fabric:
    """Carries messages between `num_devices` devices."""

    def __init__(self, network: NetworkConfig, num_devices: int, clock: Clock) -> None:
        """Raises ValueError when a table does not fit the number of devices."""
        self._network = network
        self._clock = clock
        self._find_path = _paths(network, num_devices)
        self._paths: dict[tuple[int, int], Path] = {}
        self._random = [random.Random(network.seed * 1_000_003 + r) for r in range(num_devices)]
        self._last_ns: dict[tuple[int, int, int], int] = {}

    def send(self, src: int, dst: int, nbytes: int, deliver: Deliver) -> None:
        """Put a message on its way now; `deliver(arrival_ns)` is called no later than it arrives.

        Messages between two devices keep their order.
        """
        pair = (src, dst)
        path = self._paths.get(pair)
        if path is None:
            path = self._paths[pair] = self._find_path(src, dst)
        now = self._clock.now_ns
        self._pass(path, 0, now, now, nbytes, self._jitter_ns(src), pair, deliver)

    def _jitter_ns(self, src: int) -> int:
        if not self._network.jitter_ms:
            return 0
        spread = self._network.hops * self._network.jitter_ms * 1e6
        return round(self._random[src].uniform(-spread, spread))

    def _pass(
        self,
        path: Path,
        index: int,
        first_ns: int,
        last_ns: int,
        nbytes: int,
        jitter_ns: int,
        pair: tuple[int, int],
        deliver: Deliver,
    ) -> None:
        """Through port `index`, where the first and last bit are at the given times."""
        while True:
            hop = path[index]
            port = hop.port
            if port.ns_per_byte:
                first_ns = max(first_ns, port.free_ns)
                transfer = round(nbytes * port.ns_per_byte)
                last_ns = max(first_ns + transfer, last_ns)
                port.free_ns = last_ns
            if hop.is_stored:
                first_ns = last_ns
            first_ns, last_ns = first_ns + hop.latency_ns, last_ns + hop.latency_ns
            if self._network.jitter_ms and (not index or path[0].is_stored):
                share = jitter_ns // 2 if path[0].is_stored else jitter_ns  # of one hop of two
                first_ns, last_ns = self._in_order((*pair, index), first_ns, last_ns, share)
            index += 1
            if index == len(path):
                deliver(last_ns)
                return
            if path[index].port.ns_per_byte and first_ns > self._clock.now_ns:
                break
        # The next port is shared: its turn is known when the first bit gets there.
        follow = (path, index, first_ns, last_ns, nbytes, jitter_ns, pair, deliver)
        self._clock.at(first_ns, lambda: self._pass(*follow))

    def _in_order(
        self, way: tuple[int, int, int], first_ns: int, last_ns: int, jitter_ns: int
    ) -> tuple[int, int]:
        """Jitter never lets a message overtake the one before it."""
        moved = max(first_ns + jitter_ns, self._last_ns.get(way, 0))
        last_ns += moved - first_ns
        self._last_ns[way] = last_ns
        return moved, last_ns


class _LonelyClock:
    """Time for a single message."""

    def __init__(self) -> None:
        self.now_ns = 0

    def at(self, time_ns: int, action: Callable[[], object]) -> None:
        self.now_ns = time_ns
        action()


def transfers_s(network: NetworkConfig, num_devices: int, nbytes: int) -> list[list[float]]:
    """Seconds from each device to each other for a message that is alone; jitter left out."""
    calm = replace(network, jitter_ms=0.0)
    table = [[0.0] * num_devices for _ in range(num_devices)]
    for a, b in itertools.permutations(range(num_devices), 2):
        arrivals: list[int] = []
        Fabric(calm, num_devices, _LonelyClock()).send(a, b, nbytes, arrivals.append)
        table[a][b] = arrivals[0] / 1e9
    return table


def _paths(network: NetworkConfig, num_devices: int) -> Callable[[int, int], Path]:
    """Tells the way between two devices."""
    ns_per_byte = 8e3 / network.bandwidth_mbps if network.bandwidth_mbps else 0.0
    if network.topology == "mesh":
        found = _mesh_paths(network.mesh_links or [], num_devices)
        return lambda a, b: found[a, b]
    if network.topology == "wifi":
        air = Port(ns_per_byte)
        one_hop = round(network.link_latency_ms * 1e6)
        path = (Hop(air, one_hop, is_stored=True), Hop(air, one_hop))
        return lambda a, b: path
    ups = [Port(ns_per_byte) for _ in range(num_devices)]
    downs = [Port(ns_per_byte) for _ in range(num_devices)]
    if network.topology == "wan":
        matrix = network.latency_matrix_ms or []
        if len(matrix) < num_devices:
            raise ValueError(
                f"network.latency_matrix_ms has {len(matrix)} rows, but there are "
                f"{num_devices} devices; give a row for each"
            )
        return lambda a, b: (Hop(ups[a], round(matrix[a][b] * 1e6)), Hop(downs[b], 0))
    return lambda a, b: (Hop(ups[a], network.one_way_ns), Hop(downs[b], 0))


def _mesh_paths(rows: list[list[float]], num_devices: int) -> dict[tuple[int, int], Path]:
    """Ways of least latency over full-duplex links; ties go to fewer hops, then lower ranks."""
    hops: dict[tuple[int, int], Hop] = {}
    for a, b, latency_ms, mbps in rows:
        for pair in ((int(a), int(b)), (int(b), int(a))):
            hops[pair] = Hop(Port(8e3 / mbps if mbps else 0.0), round(latency_ms * 1e6))
    found: dict[tuple[int, int], Path] = {}
    for source in range(num_devices):
        for target, route in _routes(hops, source).items():
            found[source, target] = tuple(hops[pair] for pair in itertools.pairwise(route))
        for target in range(num_devices):
            if target != source and (source, target) not in found:
                raise ValueError(
                    f"network.mesh_links has no way from device {source} to device {target}; "
                    "add a link"
                )
    return found


def _routes(hops: dict[tuple[int, int], Hop], source: int) -> dict[int, tuple[int, ...]]:
    """Dijkstra: target -> the devices on the way, both ends included."""
    best: dict[int, tuple[int, ...]] = {}
    queue: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, (source,))]
    while queue:
        latency, length, route = heapq.heappop(queue)
        if route[-1] in best:
            continue
        best[route[-1]] = route
        for (a, b), hop in hops.items():
            if a == route[-1] and b not in best:
                heapq.heappush(queue, (latency + hop.latency_ns, length + 1, (*route, b)))
    del best[source]
    return best
