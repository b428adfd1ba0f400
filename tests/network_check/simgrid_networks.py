"""What happens to a message in SimGrid, under one assumption after another.

`as_is` is SimGrid's own model CM02, without its corrections for TCP: a message is a flow that takes
all links of its way at once, after their latency; flows share a link, those of longer latency have
less of it. Each further one changes one thing more, towards our own network:

- `turns`: a port (a SimGrid link that messages take in turns) passes one message at a time, first
  come, first served;
- `turns_then_way`: and a message passes its sender's port before it travels on, not after all
  latencies.
"""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import simgrid

from tests.network_check.wiring import Leg, Ways, bytes_per_s, station_mbps, ways_of
from tpi_bench.contract.network import NetworkConfig

PRECISE = 1e-12
AT_ONCE_S = 2e-11  # what comes to a port within this comes at once: SimGrid counts in floats
UNLIMITED_BYTES_PER_S = 1e12  # of links that are only latency
SETTINGS = {
    "network/model": "CM02",
    "network/bandwidth-factor": 1,
    "network/latency-factor": 1,
    "network/weight-S": 0,
    "network/TCP-gamma": 0,
    "network/crosstraffic": 0,
    "surf/precision": PRECISE,
    "maxmin/precision": PRECISE,
}


def new_engine() -> simgrid.Engine:
    """There can be one a process."""
    options = [f"--cfg={name}:{value}" for name, value in SETTINGS.items()]
    return simgrid.Engine(["network_check", "--log=root.thres:critical", *options])


def _travel(latency_s: float) -> None:
    if latency_s:
        simgrid.this_actor.sleep_for(latency_s)


@dataclass(frozen=True)
class Message:
    """`index` counts what its sender sends."""

    src: int
    dst: int
    nbytes: int
    index: int
    arrived: Callable[[], object]


class Network(ABC):
    """`hosts` are the ranks'."""

    hosts: list[Any]

    def __init__(self) -> None:
        self._num_sent: defaultdict[int, int] = defaultdict(int)

    def carry(self, src: int, dst: int, nbytes: int, arrived: Callable[[], object]) -> None:
        """Put a message on its way, which an actor of its own goes with."""
        self._num_sent[src] += 1
        message = Message(src, dst, nbytes, self._num_sent[src], arrived)
        simgrid.Actor.create("message", self.hosts[src], self._go, message)

    @abstractmethod
    def _go(self, message: Message) -> None: ...


class Flows(Network):
    """SimGrid's own flows. What of the way is latency is a link's that all may use at once."""

    def __init__(self, network: NetworkConfig, num_ranks: int) -> None:
        super().__init__()
        self._ways = ways_of(network, num_ranks)
        self._is_wifi = network.topology == "wifi"
        if self._is_wifi:
            self.hosts = _wifi_zone(network, num_ranks)
        else:
            self.hosts = _full_zone(self._ways, num_ranks)

    def _go(self, message: Message) -> None:
        if self._is_wifi:  # its zone has one latency for all stations: each message waits by itself
            _travel(sum(leg.latency_s for leg in self._ways[message.src, message.dst]))
        simgrid.Comm.sendto(self.hosts[message.src], self.hosts[message.dst], message.nbytes)
        message.arrived()


def _full_zone(ways: Ways, num_ranks: int) -> list[Any]:
    zone = simgrid.NetZone.create_full_zone("network")
    hosts = [zone.create_host(f"rank {rank}", 1e9) for rank in range(num_ranks)]
    ports: dict[str, Any] = {}
    for (src, dst), legs in ways.items():
        if src == dst:
            continue
        for leg in legs:
            if leg.port not in ports:
                ports[leg.port] = zone.create_link(leg.port, leg.bytes_per_s).seal()
        way = zone.create_link(f"way {src} to {dst}", UNLIMITED_BYTES_PER_S)
        way.set_latency(sum(leg.latency_s for leg in legs))
        way.set_sharing_policy(simgrid.Link.SharingPolicy.FATPIPE, None)
        links = [*(ports[leg.port] for leg in legs), way.seal()]
        parts = [simgrid.LinkInRoute(link) for link in links]
        ends = hosts[src].netpoint, hosts[dst].netpoint
        zone.add_route(*ends, None, None, parts, False)
    zone.seal()
    return hosts


def _wifi_zone(network: NetworkConfig, num_ranks: int) -> list[Any]:
    """SimGrid's Wi-Fi: flows share the time of one channel, each at its stations' rates."""
    zone = simgrid.NetZone.create_wifi_zone("network")
    zone.set_property("access_point", "access point")
    zone.create_router("access point")
    hosts = [zone.create_host(f"rank {rank}", 1e9) for rank in range(num_ranks)]
    rates = [bytes_per_s(station_mbps(network, rank)) for rank in range(num_ranks)]
    air = zone.create_link("air", rates)
    air.set_latency(0)
    air.seal()
    zone.seal()
    for level, host in enumerate(hosts):
        air.set_host_wifi_rate(host, level)
    return hosts


@dataclass(order=True)
class Waiting:
    """A message before a port: who came first is first, of those that come at once the lower rank.

    `came_s` is rounded to a tenth of a nanosecond.
    """

    came_s: float
    src: int
    index: int
    may_pass: Any = field(compare=False)


class Turn:
    """Who may use a port now."""

    def __init__(self) -> None:
        self._is_taken = False
        self._queue: list[Waiting] = []

    def take(self, src: int, index: int) -> None:
        came_s = round(simgrid.Engine.clock, 10)
        own = Waiting(came_s, src, index, simgrid.Semaphore(0))
        heapq.heappush(self._queue, own)
        simgrid.this_actor.sleep_for(AT_ONCE_S)
        if not self._is_taken:
            self._is_taken = True
            heapq.heappop(self._queue).may_pass.release()
        own.may_pass.acquire()

    def leave(self) -> None:
        if self._queue:
            heapq.heappop(self._queue).may_pass.release()
        else:
            self._is_taken = False


class Turns(Network):
    """Ports that pass one message at a time, each a SimGrid link that messages take in turns.

    The first bit goes on at once, so that a message can be in several ports together; the last one
    leaves a port when it has come there and the port has passed the message.
    """

    travels_first = True

    def __init__(self, network: NetworkConfig, num_ranks: int) -> None:
        super().__init__()
        self._ways = ways_of(network, num_ranks)
        self._zone = simgrid.NetZone.create_full_zone("network")
        self.hosts = [self._zone.create_host(f"rank {rank}", 1e9) for rank in range(num_ranks)]
        self._turns: defaultdict[str, Turn] = defaultdict(Turn)
        self._ports: dict[tuple[str, float], tuple[Any, Any]] = {}
        for leg in itertools.chain.from_iterable(self._ways.values()):
            if (leg.port, leg.bytes_per_s) not in self._ports:
                self._ports[leg.port, leg.bytes_per_s] = self._new_port(leg)
        self._zone.seal()

    def _new_port(self, leg: Leg) -> tuple[Any, Any]:
        """Hosts before and behind a link."""
        name = f"{leg.port}, {leg.bytes_per_s} bytes/s"
        before, behind = (self._zone.create_host(f"{end} {name}", 1e9) for end in ("in", "out"))
        link = simgrid.LinkInRoute(self._zone.create_link(name, leg.bytes_per_s).seal())
        self._zone.add_route(before.netpoint, behind.netpoint, None, None, [link], False)
        return before, behind

    def _go(self, message: Message) -> None:
        legs = self._ways[message.src, message.dst]
        if self.travels_first:
            _travel(sum(leg.latency_s for leg in legs))
            legs = tuple(replace(leg, latency_s=0.0) for leg in legs)
        self._pass(message, legs, simgrid.Semaphore(1))  # the last bit is there too

    def _pass(self, message: Message, legs: tuple[Leg, ...], last_bit: Any) -> None:
        """Through all of `legs`. `last_bit` is released when it has come to the first."""
        leg, *others = legs
        turn = self._turns[leg.port]
        turn.take(message.src, message.index)
        onward = simgrid.Semaphore(0)
        if others and not leg.is_stored:
            self._send_ahead(message, leg.latency_s, tuple(others), onward)
        simgrid.Comm.sendto(*self._ports[leg.port, leg.bytes_per_s], message.nbytes)
        turn.leave()
        last_bit.acquire()
        _travel(leg.latency_s)
        onward.release()
        if not others:
            message.arrived()
        elif leg.is_stored:
            self._pass(message, tuple(others), onward)

    def _send_ahead(
        self, message: Message, latency_s: float, legs: tuple[Leg, ...], last_bit: Any
    ) -> None:
        """The first bit, which is before the next port after `latency_s`."""

        def first_bit() -> None:
            _travel(latency_s)
            self._pass(message, legs, last_bit)

        simgrid.Actor.create("first bit", self.hosts[message.src], first_bit)


class TurnsThenWay(Turns):
    travels_first = False


ASSUMPTIONS: dict[str, type[Network]] = {
    "as_is": Flows,
    "turns": Turns,
    "turns_then_way": TurnsThenWay,
}
