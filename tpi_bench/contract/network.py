"""The `network` group: topologies, and what their links do to a message.

`processes/links.py` emulates it in wall-clock time, `virtual/network.py` carries it out in virtual
time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf

from tpi_bench.contract.setting import setting

# Hops between any two devices. `paper`: device, home gateway, core router, gateway, device
# (TPI-LLM, section 4 and appendix): 4 links one way. `switch`: device, switch, device. `wifi`:
# device, access point, device, over one channel that carries one frame at a time.
HOPS = {"none": 0, "switch": 2, "paper": 4, "wifi": 2}
# One way between each pair of devices, from a table: `wan` a matrix of latencies, `mesh` links.
TABLES = ("wan", "mesh")
TOPOLOGY_NAMES = (*HOPS, *TABLES)
VIRTUAL_ONLY = ("wifi", *TABLES)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a token must send. Anything that may overlap something else is left out.

    `latencies`: one-way latencies on its critical path. `serial_bytes`: what passes the devices'
    own links one after another on that path. `all_bytes`: all that is sent.
    """

    latencies: int = 0
    serial_bytes: float = 0.0
    all_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The `network` group. Latency and jitter are per hop.

    `bandwidth_mbps` is what one device gets when nobody else sends, as iperf3 shows it: the rate of
    every up-link and down-link; on `wifi` of two devices through the access point, whose channel
    then passes twice as much, as every message crosses it twice. There `station_mbps` gives each
    device its own rate to the access point instead (a message takes the channel for its bytes at
    the sender's rate, and again at the receiver's), and `station_latency_ms` its own way there.
    `wan`: `latency_matrix_ms[a][b]` is the way from device a to device b. `mesh`: each row of
    `mesh_links` is a link [device, device, latency in ms, Mbit/s] (0 Mbit/s is unlimited); a
    message takes the way of least latency, through other devices where there is no own link.
    """

    topology: str = setting("none", "what connects the devices", TOPOLOGY_NAMES)
    link_latency_ms: float = setting(
        0.0,
        "latency of a link, a hop; switch and wifi have 2 hops between two devices, paper 4",
        common=True,
    )
    jitter_ms: float = setting(0.0, "of a hop, uniform, plus or minus")
    bandwidth_mbps: float = setting(
        0.0,
        "of each device's up-link and down-link (wifi: between two devices alone); 0 is unlimited",
        common=True,
    )
    timeout_s: float = setting(30.0, "a device that is silent for longer hangs")
    tls: bool = setting(False, "encrypt all that devices send, on a cluster (TLS 1.3)")
    seed: int = setting(0, "of jitter")
    station_mbps: list[float] | None = setting(
        None, "wifi: each device's own rate to the access point (with bandwidth_mbps=0)"
    )
    station_latency_ms: list[float] | None = setting(
        None, "wifi: each device's own way to the access point (with link_latency_ms=0)"
    )
    latency_matrix_ms: list[list[float]] | None = setting(
        None, "wan: the way from each device to each other"
    )
    mesh_links: list[list[float]] | None = setting(
        None, "mesh: links [device, device, latency in ms, Mbit/s]"
    )

    def __post_init__(self) -> None:
        if self.topology not in TOPOLOGY_NAMES:
            raise ValueError(
                f"network.topology={self.topology} is unknown; choose one of "
                f"{', '.join(TOPOLOGY_NAMES)}"
            )
        self._check_tables()
        self._check_stations()
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

    def _check_tables(self) -> None:
        if self.topology in TABLES and (self.link_latency_ms or self.jitter_ms):
            raise ValueError(
                f"network.topology={self.topology} has its latencies in a table; link_latency_ms "
                "and jitter_ms must be 0"
            )
        if self.topology == "wan":
            matrix = self.latency_matrix_ms or []
            if not matrix or any(len(row) != len(matrix) for row in matrix):
                raise ValueError(
                    "network.latency_matrix_ms must be a square table of milliseconds, one row a "
                    "device, for network.topology=wan"
                )
            if any(not 0 <= value < inf for row in matrix for value in row):
                raise ValueError("network.latency_matrix_ms must hold numbers of at least 0")
        if self.topology == "mesh" and (
            not self.mesh_links or any(not _is_link(row) for row in self.mesh_links)
        ):
            raise ValueError(
                "network.mesh_links must hold rows [device, device, latency in ms, Mbit/s] of "
                "numbers of at least 0, for network.topology=mesh"
            )

    def _check_stations(self) -> None:
        for name, whole in (
            ("station_mbps", "bandwidth_mbps"),
            ("station_latency_ms", "link_latency_ms"),
        ):
            values = getattr(self, name)
            if values is None:
                continue
            if self.topology != "wifi":
                raise ValueError(
                    f"network.{name} says what each device has of a Wi-Fi channel; it needs "
                    f"network.topology=wifi, not {self.topology}"
                )
            least_is_ok = name == "station_latency_ms"
            if not values or any(not (0 < v < inf or (v == 0 and least_is_ok)) for v in values):
                least = "of at least 0" if least_is_ok else "above 0"
                raise ValueError(f"network.{name}={values} must hold numbers {least}, one a device")
            if getattr(self, whole) or (name == "station_latency_ms" and self.jitter_ms):
                raise ValueError(
                    f"network.{name} stands in the place of network.{whole}, which must be 0"
                )

    @property
    def hops(self) -> int:
        return HOPS[self.topology]

    @property
    def one_way_ns(self) -> int:
        """Time one bit travels between two devices; the least of all pairs where they differ."""
        if self.topology == "wan":
            matrix = self.latency_matrix_ms or []
            ways = [v for a, row in enumerate(matrix) for b, v in enumerate(row) if a != b]
            return round(min(ways, default=0.0) * 1e6)
        if self.topology == "mesh":
            return round(min(row[2] for row in self.mesh_links or []) * 1e6)
        if self.station_latency_ms:
            return round(sum(sorted(self.station_latency_ms)[:2]) * 1e6)
        return round(self.hops * self.link_latency_ms * 1e6)

    def least_s(self, traffic: Traffic, one_way_s: float) -> float:
        """What the links cost a token at least, of devices that compute in no time, where a bit
        travels `one_way_s`.
        """
        return max(self.path_s(traffic, one_way_s), self.channel_s(traffic))

    def path_s(self, traffic: Traffic, one_way_s: float) -> float:
        """What passes links on a token's critical path, which no computing on it overlaps.

        Each device's link passes one byte after another, and then they travel. On Wi-Fi some pass
        while others travel.
        """
        serial_bytes = 0.0 if self.topology == "wifi" else traffic.serial_bytes
        return traffic.latencies * one_way_s + serial_bytes * self._least_s_per_byte

    def channel_s(self, traffic: Traffic) -> float:
        """What all bytes take on a channel that everyone shares, while devices may compute."""
        return traffic.all_bytes * self._least_s_per_byte if self.topology == "wifi" else 0.0

    @property
    def _least_s_per_byte(self) -> float:
        """Of the fastest links that there are."""
        rates_mbps = [self.bandwidth_mbps]
        if self.station_mbps:
            fastest = sorted(self.station_mbps)[-2:]
            return sum(8e-6 / mbps for mbps in fastest)
        if self.topology == "mesh":
            rates_mbps = [row[3] for row in self.mesh_links or []]
        return 8e-6 / max(rates_mbps) if all(rates_mbps) else 0.0

    @property
    def is_emulated(self) -> bool:
        return bool(self.one_way_ns or self.bandwidth_mbps)

    @property
    def words(self) -> str:
        """For people."""
        if self.topology in TABLES or self.station_latency_ms:
            return f"{self.topology} network, {self.one_way_ns / 1e6:g} ms one way at least"
        return f"{self.topology} network, {self.link_latency_ms:g} ms a hop"

    def transfer_ns(self, nbytes: int) -> int:
        """Time a message occupies one link."""
        return round(nbytes * 8e3 / self.bandwidth_mbps) if self.bandwidth_mbps else 0


def _is_link(row: list[float]) -> bool:
    """Whether a row names two devices, a latency and a rate."""
    is_whole = len(row) == 4 and all(float(device).is_integer() for device in row[:2])
    return is_whole and all(0 <= value < inf for value in row)


class Jitter:
    """Seeded deviations from the time that a device's messages travel, in ns."""

    def __init__(self, network: NetworkConfig, rank: int) -> None:
        self._random = random.Random(network.seed * 1_000_003 + rank)
        self._spread_ns = network.hops * network.jitter_ms * 1e6 if network.jitter_ms else 0.0

    def draw_ns(self) -> int:
        """The next message's, uniform over all hops."""
        if not self._spread_ns:
            return 0
        return round(self._random.uniform(-self._spread_ns, self._spread_ns))
