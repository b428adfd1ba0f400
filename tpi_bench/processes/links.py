"""Emulated links: when a message leaves, travels and arrives. Pure arithmetic.

Each device has one up-link and one down-link to a named topology. A message leaves when the up-link
is free, its last bit leaves one transfer time later, every bit travels `hops * latency`, and the
receiver's down-link passes one message at a time at its own rate. Bits flow through (cut-through):
on idle links of equal rate a message takes latency + size / rate. `mesh.py` sleeps until the times
computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from tpi_bench.contract.network import Jitter, NetworkConfig


@dataclass(frozen=True)
class Flight:
    """When a message's first and last bit reach the receiver's down-link."""

    first_ns: int
    last_ns: int


class UpLink:
    """The sender's side: one message at a time, in order."""

    def __init__(self, network: NetworkConfig, rank: int) -> None:
        self._network = network
        self._jitter = Jitter(network, rank)
        self._free_ns = 0
        self._last_arrival_ns: dict[int, int] = {}

    def depart(self, now_ns: int, dst: int, nbytes: int) -> Flight:
        """Put `nbytes` for `dst` on the link; messages to one receiver keep their order."""
        start = max(now_ns, self._free_ns)
        transfer = self._network.transfer_ns(nbytes)
        self._free_ns = start + transfer
        travel = self._network.one_way_ns + self._jitter.draw_ns()
        first = max(start + travel, self._last_arrival_ns.get(dst, 0))
        self._last_arrival_ns[dst] = first + transfer
        return Flight(first, first + transfer)


class DownLink:
    """The receiver's side: a message is there when its last bit has passed the shared down-link."""

    def __init__(self, network: NetworkConfig) -> None:
        self._network = network
        self._free_ns = 0

    def arrive(self, flight: Flight, nbytes: int) -> int:
        """The time at which the whole message has been received. Call in order of `first_ns`."""
        start = max(flight.first_ns, self._free_ns)
        done = max(start + self._network.transfer_ns(nbytes), flight.last_ns)
        self._free_ns = done
        return done
