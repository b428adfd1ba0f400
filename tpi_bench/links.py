"""Emulated links: when a message leaves, travels and arrives. Pure arithmetic.

Each device has one up-link and one down-link to a named topology. A message leaves when the up-link
is free, its last bit leaves one transfer time later, every bit travels `hops * latency`, and the
receiver's down-link passes one message at a time at its own rate. Bits flow through (cut-through):
on idle links of equal rate a message takes latency + size / rate. Used by the wall-clock runtime,
which sleeps until the times computed here, and by any runtime with a clock of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Hops between any two devices. `paper`: device, home gateway, core router, gateway, device
# (TPI-LLM, section 4 and appendix): 4 links one way. `switch`: device, switch, device.
HOPS = {"none": 0, "switch": 2, "paper": 4}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The `network` group. Latency and jitter are per hop; bandwidth is each link's."""

    topology: str = "none"
    link_latency_ms: float = 0.0
    jitter_ms: float = 0.0
    bandwidth_mbps: float = 0.0
    timeout_s: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.topology not in HOPS:
            raise ValueError(
                f"network.topology={self.topology} is unknown; choose one of {', '.join(HOPS)}"
            )
        for name in ("link_latency_ms", "jitter_ms", "bandwidth_mbps"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"network.{name}={value} must be a number of at least 0")
        if self.topology == "none" and (
            self.link_latency_ms or self.jitter_ms or self.bandwidth_mbps
        ):
            raise ValueError(
                "network.topology=none emulates nothing, so link_latency_ms, jitter_ms and "
                "bandwidth_mbps must be 0; choose network=switch or network=paper"
            )
        if self.jitter_ms > self.link_latency_ms:
            raise ValueError(
                f"network.jitter_ms={self.jitter_ms} must not exceed "
                f"link_latency_ms={self.link_latency_ms}"
            )
        if not 0 < self.timeout_s <= 86400:
            raise ValueError(
                f"network.timeout_s={self.timeout_s} must be above 0 and at most 86400 seconds"
            )

    @property
    def hops(self) -> int:
        return HOPS[self.topology]

    @property
    def one_way_ns(self) -> int:
        """Time one bit travels between two devices."""
        return round(self.hops * self.link_latency_ms * 1e6)

    @property
    def is_emulated(self) -> bool:
        return bool(self.one_way_ns or self.bandwidth_mbps)

    def transfer_ns(self, nbytes: int) -> int:
        """Time a message occupies one link."""
        return round(nbytes * 8e3 / self.bandwidth_mbps) if self.bandwidth_mbps else 0


@dataclass(frozen=True)
class Flight:
    """When a message's first and last bit reach the receiver's down-link."""

    first_ns: int
    last_ns: int


class UpLink:
    """The sender's side: one message at a time, in order."""

    def __init__(self, network: NetworkConfig, rank: int) -> None:
        self._network = network
        self._random = random.Random(network.seed * 1_000_003 + rank)
        self._free_ns = 0
        self._last_arrival_ns: dict[int, int] = {}

    def depart(self, now_ns: int, dst: int, nbytes: int) -> Flight:
        """Put `nbytes` for `dst` on the link; messages to one receiver keep their order."""
        start = max(now_ns, self._free_ns)
        transfer = self._network.transfer_ns(nbytes)
        self._free_ns = start + transfer
        travel = self._network.one_way_ns
        if self._network.jitter_ms:
            spread = self._network.hops * self._network.jitter_ms * 1e6
            travel += round(self._random.uniform(-spread, spread))
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
