"""The virtual network: messages on their way from port to port, in virtual time.

`topologies.py` says which ports lie between two devices. A port passes one message at a time, first
come (by first bit), first served, at its own rate; bits flow through several ports at once
(cut-through), except where a hop receives a message whole before it sends it on. So flows that
share a port wait for each other's whole messages: the mean is that of a fair share, the order is
not, and a small message behind a large one waits longer than with packets in turns. A message whose
bits come more slowly than a port could pass them takes only the port's own time for them, as if it
did so at once, and leaves the rest to others. Losses, retransmissions, TCP's slow start and Wi-Fi's
contention for the channel are left out. `make validate_network` holds it against SimGrid.

The runtime sends over a `Fabric`; planners ask for `transfers_s`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from tpi_bench.contract.network import Jitter, NetworkConfig
from tpi_bench.virtual.topologies import TOPOLOGIES, Hop

Deliver = Callable[[int], object]


class Clock(Protocol):
    """Virtual time in ns, and what is to happen when."""

    now_ns: int

    def at(self, time_ns: int, action: Callable[[], object], planned_ns: int) -> None: ...


class Way(NamedTuple):
    """From one device to another; `left_ns` is when the last message had left each hop."""

    hops: tuple[Hop, ...]
    left_ns: list[int]


@dataclass(slots=True)
class Message:
    """On its way. `first_ns` and `last_ns` are when its first and last bit are at the next port."""

    clock: Clock
    way: Way
    nbytes: int
    jitter_ns: int
    first_ns: int
    last_ns: int
    deliver: Deliver
    place: int = 0  # of the next port on the way

    def go_on(self) -> None:
        """Through every port of which it is known by now when its turn is."""
        hops, place = self.way.hops, self.place
        now_ns, last_ns = self.first_ns, self.last_ns
        first_ns = now_ns
        while True:
            port, ns_per_byte, latency_ns, is_stored, jitter_parts, _ = hops[place]
            if ns_per_byte:
                if port.free_ns > first_ns:
                    first_ns = port.free_ns
                free_ns = port.free_ns = first_ns + round(self.nbytes * ns_per_byte)
                if free_ns > last_ns:
                    last_ns = free_ns
            if is_stored:
                first_ns = last_ns
            first_ns += latency_ns
            last_ns += latency_ns
            if jitter_parts:
                late_ns = self._late_ns(place, first_ns, self.jitter_ns // jitter_parts)
                first_ns += late_ns
                last_ns += late_ns
                self.way.left_ns[place] = last_ns
            place += 1
            if place == len(hops):
                self.deliver(last_ns)
                return
            is_early = first_ns > self.clock.now_ns or hops[place - 1].is_own
            if hops[place].ns_per_byte and is_early:
                # Shared, and others may be there before the first bit is. Behind an own port its
                # sender is still at it, and it is the clock that delivers.
                self.place, self.first_ns, self.last_ns = place, first_ns, last_ns
                self.clock.at(first_ns, self.go_on, now_ns)
                return

    def _late_ns(self, place: int, first_ns: int, jitter_ns: int) -> int:
        """Jitter never lets a message overtake the one before it."""
        return max(jitter_ns, self.way.left_ns[place] - first_ns)


class Fabric:
    """Carries messages between `num_devices` devices."""

    def __init__(self, network: NetworkConfig, num_devices: int, clock: Clock) -> None:
        """Raises ValueError when a table does not fit the number of devices."""
        self._clock = clock
        self._topology = TOPOLOGIES[network.topology](network, num_devices)
        self._ways: dict[tuple[int, int], Way] = {}
        self._jitter = [Jitter(network, rank) for rank in range(num_devices)]
        self._has_jitter = bool(network.jitter_ms)

    def send(self, src: int, dst: int, nbytes: int, time_ns: int, deliver: Deliver) -> None:
        """Put a message on its way at a time that is not past; `deliver(arrival_ns)` is called by
        the clock, no later than it arrives.

        Messages between two devices keep their order. Those of one sender are put on their way in
        the order of their times.
        """
        way = self._ways.get((src, dst))
        if way is None:
            hops = self._topology.hops(src, dst)
            way = self._ways[src, dst] = Way(hops, [0] * len(hops))
        jitter_ns = self._jitter[src].draw_ns() if self._has_jitter else 0
        clock = self._clock
        message = Message(clock, way, nbytes, jitter_ns, time_ns, time_ns, deliver)
        if way.hops[0].is_own:
            message.go_on()  # nobody can be there before it, so it need not wait for its time
        else:
            clock.at(time_ns, message.go_on, time_ns)


class _LonelyClock:
    """Time for one message after the other."""

    def __init__(self) -> None:
        self.now_ns = 0

    def at(self, time_ns: int, action: Callable[[], object], planned_ns: int) -> None:
        self.now_ns = time_ns
        action()

    def skip_to(self, time_ns: int) -> None:
        self.now_ns = time_ns


def transfers_s(network: NetworkConfig, num_devices: int, nbytes: int) -> list[list[float]]:
    """Seconds from each device to each other for a message that is alone; jitter left out."""
    clock = _LonelyClock()
    fabric = Fabric(replace(network, jitter_ms=0.0), num_devices, clock)
    table = [[0.0] * num_devices for _ in range(num_devices)]
    for src, dst in itertools.permutations(range(num_devices), 2):
        start_ns = clock.now_ns
        fabric.send(src, dst, nbytes, start_ns, clock.skip_to)
        table[src][dst] = (clock.now_ns - start_ns) / 1e9
    return table
