"""Emulated links as arithmetic: when messages leave, queue and arrive. No clock, so exact."""

from __future__ import annotations

import pytest

from tpi_bench.contract.network import NetworkConfig
from tpi_bench.processes.links import DownLink, Flight, UpLink

MS = 1_000_000


def test_latency_is_hops_times_link_latency() -> None:
    assert NetworkConfig(topology="switch", link_latency_ms=1.5).one_way_ns == 3 * MS
    assert NetworkConfig(topology="paper", link_latency_ms=1).one_way_ns == 4 * MS
    assert NetworkConfig(topology="none").one_way_ns == 0


def test_a_message_alone_takes_latency_plus_transfer() -> None:
    network = NetworkConfig(topology="switch", link_latency_ms=1, bandwidth_mbps=8)  # 1 byte a us
    flight = UpLink(network, 0).depart(0, 1, 1000)
    assert flight == Flight(2 * MS, 3 * MS)
    assert DownLink(network).arrive(flight, 1000) == 3 * MS


def test_messages_queue_at_the_up_link() -> None:
    network = NetworkConfig(topology="switch", link_latency_ms=1, bandwidth_mbps=8)
    up = UpLink(network, 0)
    flights = [up.depart(0, dst, 1000) for dst in (1, 2, 3)]
    assert [flight.last_ns for flight in flights] == [3 * MS, 4 * MS, 5 * MS]
    assert up.depart(100 * MS, 1, 1000).first_ns == 102 * MS


def test_messages_queue_at_the_down_link() -> None:
    """Three workers send to the master at once: its own link is the bottleneck of the star."""
    network = NetworkConfig(topology="switch", link_latency_ms=1, bandwidth_mbps=8)
    down = DownLink(network)
    flights = [UpLink(network, rank).depart(0, 0, 1000) for rank in (1, 2, 3)]
    assert [down.arrive(flight, 1000) for flight in flights] == [3 * MS, 4 * MS, 5 * MS]


def test_jitter_is_seeded_bounded_and_keeps_order() -> None:
    network = NetworkConfig(topology="switch", link_latency_ms=1, jitter_ms=0.5, seed=3)
    arrivals = [UpLink(network, 0).depart(0, 1, 10).first_ns for _ in range(2)]
    assert arrivals[0] == arrivals[1]
    up = UpLink(network, 0)
    times = [up.depart(i * 10_000, 1, 10).first_ns for i in range(200)]
    assert times == sorted(times)
    single = [
        UpLink(NetworkConfig(topology="switch", link_latency_ms=1, jitter_ms=0.5, seed=s), 0)
        .depart(0, 1, 10)
        .first_ns
        for s in range(200)
    ]
    assert 1 * MS <= min(single) < 1.2 * MS
    assert 2.8 * MS < max(single) <= 3 * MS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"topology": "star"}, "topology=star is unknown; choose one of none, switch, paper"),
        ({"topology": "mesh"}, "mesh_links must hold rows"),
        ({"topology": "mesh", "mesh_links": [[0, 1, 2]]}, "mesh_links must hold rows"),
        ({"topology": "wan"}, "latency_matrix_ms must be a square table"),
        ({"topology": "wan", "latency_matrix_ms": [[0, 1], [1]]}, "must be a square table"),
        ({"topology": "wan", "latency_matrix_ms": [[0, -1], [1, 0]]}, "at least 0"),
        ({"topology": "wan", "latency_matrix_ms": [[0]], "link_latency_ms": 1}, "in a table"),
        ({"link_latency_ms": -1}, "link_latency_ms=-1 must be a number of at least 0"),
        ({"topology": "none", "link_latency_ms": 1}, "choose network=switch"),
        ({"topology": "switch", "link_latency_ms": 1, "jitter_ms": 2}, "must not exceed"),
        ({"timeout_s": 0}, "timeout_s=0 must be above 0"),
        ({"topology": "switch", "bandwidth_mbps": float("nan")}, "bandwidth_mbps=nan"),
    ],
)
def test_bad_networks_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**values)
