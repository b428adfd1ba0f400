"""What is run through both networks: a program, the devices, their network and who else uses it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from tpi_bench.contract.network import NetworkConfig

KIB, MIB, MS, US = 1024, 1024 * 1024, 1_000_000, 1_000
PROGRAMS = ("star", "direct", "ring", "tree", "galaxy")
SIZES = (KIB, 32 * KIB, MIB)
PRODUCT = {"enter": 150 * US, "leave": 90 * US}  # of Galaxy: what its ring steps overlap with


@dataclass(frozen=True)
class Flow:
    """A message that no program waits for: others use the same ports."""

    start_ns: int
    src: int
    dst: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """Ranks from `num_devices` to `num_ranks` take no part in the program: they only send `flows`.

    `program` is a collective, `galaxy` (two blocks of its ring), or `flows` alone. `message_bytes`:
    of one device's partial sum or tile, or of the largest flow. Before each round device
    r waits (1 + r) `stagger_ns`, so that few messages are at a port at once by chance.
    """

    group: str
    program: str
    words: str
    network: NetworkConfig
    num_devices: int
    message_bytes: int
    num_ranks: int = 0
    flows: tuple[Flow, ...] = ()
    stagger_ns: int = 0
    num_rounds: int = 2
    compute_ns: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.group}/{self.program}/{self.num_devices}/{self.message_bytes}"

    @property
    def world_size(self) -> int:
        return max(self.num_devices, self.num_ranks)


def switch(mbps: float = 300, hop_ms: float = 1) -> NetworkConfig:
    return NetworkConfig(topology="switch", link_latency_ms=hop_ms, bandwidth_mbps=mbps)


def _case(group: str, program: str, words: str, network: NetworkConfig, **settings: int) -> Case:
    """Of a program: Galaxy's products take time, which its ring hides."""
    compute_ns = PRODUCT if program == "galaxy" else {}
    return Case(
        group=group,
        program=program,
        words=words,
        network=network,
        compute_ns=compute_ns,
        **settings,  # type: ignore[arg-type]
    )


def _alike() -> Iterator[Case]:
    for program, num_devices, nbytes in itertools.product(PROGRAMS, (2, 4, 8, 16), SIZES):
        yield _case(
            "alike",
            program,
            "switch, 1 ms a hop, 300 Mbit/s",
            switch(),
            num_devices=num_devices,
            message_bytes=nbytes,
            num_rounds=1,
        )


def cables(num_devices: int) -> NetworkConfig:
    """A cable a device to a hub, the last rank: 100 to 1000 Mbit/s, 0.3 to 5 ms."""
    rates, latencies = (300, 1000, 100, 450), (0.3, 2.0, 0.7, 5.0, 1.1)
    links = [
        [rank, num_devices, latencies[rank % 5], rates[rank % 4]] for rank in range(num_devices)
    ]
    return NetworkConfig(topology="mesh", mesh_links=links)


def far(num_devices: int) -> NetworkConfig:
    """No two ways are equally long, and none is so back: 1 to 21 ms."""
    ranks = range(num_devices)
    matrix = [[1 + (7 * a + 3 * b) % 41 * 0.5 if a != b else 0.0 for b in ranks] for a in ranks]
    return NetworkConfig(topology="wan", latency_matrix_ms=matrix, bandwidth_mbps=100)


def _unequal() -> Iterator[Case]:
    for program, num_devices, nbytes in itertools.product(PROGRAMS, (4, 8), SIZES):
        yield _case(
            "own rates",
            program,
            "a cable each to a hub, 100 to 1000 Mbit/s, 0.3 to 5 ms",
            cables(num_devices),
            num_devices=num_devices,
            num_ranks=num_devices + 1,
            message_bytes=nbytes,
            stagger_ns=37 * US,
        )
        yield _case(
            "own latencies",
            program,
            "wan, 1 to 21 ms by pair and direction, 100 Mbit/s",
            far(num_devices),
            num_devices=num_devices,
            message_bytes=nbytes,
            stagger_ns=37 * US,
        )


def _cross_traffic() -> Iterator[Case]:
    """Two more devices send to the master and to device 1 all the while, and device 1 to one."""
    for program, num_devices, nbytes in itertools.product(PROGRAMS, (4, 8), (32 * KIB, MIB)):
        one, other = num_devices, num_devices + 1
        flows = [
            Flow(start_ns, src, dst, 300 * KIB)
            for index in range(6)
            for start_ns, src, dst in (
                (index * 11 * MS + 3 * US, one, 0),
                (index * 9 * MS + 5 * US, other, 1),
            )
        ]
        yield Case(
            group="cross-traffic",
            program=program,
            words="switch, 1 ms a hop, 300 Mbit/s; 6 x 300 KiB each to devices 0 and 1, 1 from 1",
            network=switch(),
            num_devices=num_devices,
            num_ranks=num_devices + 2,
            message_bytes=nbytes,
            flows=(*flows, Flow(0, 1, other, 300 * KIB)),
            stagger_ns=37 * US,
            compute_ns=PRODUCT if program == "galaxy" else {},
        )


def _wifi() -> Iterator[Case]:
    alike = NetworkConfig(topology="wifi", link_latency_ms=1, bandwidth_mbps=178)
    stations = NetworkConfig(
        topology="wifi",
        station_mbps=[510.0, 320.0, 320.0, 610.0],
        station_latency_ms=[2.5, 3.5, 3.6, 1.5],
    )
    for program, nbytes in itertools.product(PROGRAMS, (32 * KIB, MIB)):
        for num_devices in (2, 4, 8):
            yield _case(
                "wifi",
                program,
                "one channel, 1 ms a hop, 178 Mbit/s between two",
                alike,
                num_devices=num_devices,
                message_bytes=nbytes,
                stagger_ns=37 * US,
            )
        yield _case(
            "wifi stations",
            program,
            "one channel, 320 to 610 Mbit/s and 1.5 to 3.6 ms a station",
            stations,
            num_devices=4,
            message_bytes=nbytes,
            stagger_ns=37 * US,
        )


def _mesh() -> Iterator[Case]:
    """Eight devices in a circle of cables and one across: messages pass through other devices."""
    rates = (300, 100, 300, 1000, 200)
    circle = [[a, (a + 1) % 8, 0.5 + 0.07 * a + 0.013 * a**2, rates[a % 5]] for a in range(8)]
    network = NetworkConfig(topology="mesh", mesh_links=[*circle, [0, 4, 0.4, 150]])
    for program, nbytes in itertools.product(PROGRAMS, SIZES):
        yield _case(
            "mesh",
            program,
            "a circle of 8 cables and one across, 100 to 1000 Mbit/s, 0.4 to 1.63 ms",
            network,
            num_devices=8,
            message_bytes=nbytes,
            stagger_ns=37 * US,
        )


def _ports() -> Iterator[Case]:
    """What one port does with those who meet at it. Rank 0 is a hub, 1 the receiver."""
    slow = [[2 + index, 0, 0.1, 100] for index in range(10)]
    links = [[0, 1, 0.1, 1000], *slow, [12, 0, 0.1, 1000]]
    hub = NetworkConfig(topology="mesh", mesh_links=links)
    large = 1_250_000  # 100 ms at 100 Mbit/s, 10 at 1000
    ten = tuple(Flow(0, 2 + index, 1, large) for index in range(10))
    tiny = Flow(30 * MS, 12, 1, 100)
    settings = {
        "a slow sender and a tiny message": (ten[0], tiny),
        "ten slow senders": ten,
        "ten slow senders and a tiny message": (*ten, tiny),
        "ten slow senders and a large fast message": (*ten, Flow(30 * MS, 12, 1, large)),
        "a tiny message behind a large fast one": (Flow(0, 12, 1, large), Flow(MS, 2, 1, 100)),
    }
    for words, flows in settings.items():
        yield Case(
            group=words,
            program="flows",
            words="cables of 100 Mbit/s into a port of 1 Gbit/s, 0.1 ms each",
            network=hub,
            num_devices=len(flows),
            num_ranks=13,
            message_bytes=large,
            flows=flows,
        )


def all_cases() -> dict[str, Case]:
    """By name, in the order of the table."""
    groups = (_alike, _unequal, _cross_traffic, _wifi, _mesh, _ports)
    found = [case for group in groups for case in group()]
    cases = {case.name: case for case in found}
    assert len(cases) == len(found)
    return cases
