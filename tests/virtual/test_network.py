"""The virtual network against traces worked out by hand. Integer nanoseconds, no tolerance."""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, permutations

import pytest

from tpi_bench.contract.network import TOPOLOGY_NAMES, NetworkConfig
from tpi_bench.virtual.network import Fabric, transfers_s
from tpi_bench.virtual.scheduler import Scheduler
from tpi_bench.virtual.topologies import TOPOLOGIES

MS = 1_000_000
MBPS = 8  # 1,000 bytes take a millisecond
Send = tuple[int, int, int, int]  # leaves at (ns), from, to, bytes


def carry(
    network: NetworkConfig, sends: list[Send], num_devices: int = 4
) -> tuple[list[int], list[int]]:
    """When each message is there, and the messages in the order in which they were delivered."""
    clock = Scheduler()
    fabric = Fabric(network, num_devices, clock)
    arrivals: dict[int, int] = {}

    def deliver(index: int, arrival_ns: int) -> None:
        assert index not in arrivals
        assert arrival_ns >= clock.now_ns  # told in time
        arrivals[index] = arrival_ns

    for index, (time_ns, src, dst, nbytes) in enumerate(sends):
        fabric.send(src, dst, nbytes, time_ns, functools.partial(deliver, index))
    clock.run()
    return [arrivals[index] for index in range(len(sends))], list(arrivals)


def arrivals_of(network: NetworkConfig, sends: list[Send], num_devices: int = 4) -> list[int]:
    return carry(network, sends, num_devices)[0]


def test_a_message_alone_takes_latency_plus_one_transfer() -> None:
    network = NetworkConfig(topology="paper", link_latency_ms=1, bandwidth_mbps=MBPS)
    assert arrivals_of(network, [(5 * MS, 0, 1, 3000)]) == [5 * MS + 4 * MS + 3 * MS]


def test_without_a_topology_a_message_is_there_at_once() -> None:
    assert arrivals_of(NetworkConfig(), [(7, 0, 1, 1 << 30), (7, 2, 1, 1)]) == [7, 7]


def test_unlimited_links_pass_any_number_at_once() -> None:
    network = NetworkConfig(topology="switch", link_latency_ms=1)
    assert arrivals_of(network, [(0, src, 3, 1 << 30) for src in (0, 1, 2, 0)]) == [2 * MS] * 4


def test_one_sender_to_two_receivers_queues_at_its_up_link() -> None:
    """Transfer 4: on the up-link 0-4 and 4-8 ms, latency 2; the down-links are idle."""
    network = NetworkConfig(topology="switch", link_latency_ms=1, bandwidth_mbps=MBPS)
    assert arrivals_of(network, [(0, 0, 1, 4000), (0, 0, 2, 4000)]) == [6 * MS, 10 * MS]


def wan(ways: dict[tuple[int, int], float], mbps: float = 0) -> NetworkConfig:
    """Latencies in ms one way, in this direction only; all others 50."""
    matrix = [[ways.get((a, b), 0.0 if a == b else 50.0) for b in range(4)] for a in range(4)]
    return NetworkConfig(topology="wan", latency_matrix_ms=matrix, bandwidth_mbps=mbps)


def test_the_first_bit_to_arrive_is_served_first() -> None:
    """Device 1 sends first, but its way is longer. Transfer 4, latencies 3 and 1 ms.

    From 2: sent at 1, first bit at 2, passes 2-6. From 1: first bit at 3, passes 6-10.
    """
    network = wan({(1, 0): 3, (2, 0): 1}, MBPS)
    assert arrivals_of(network, [(0, 1, 0, 4000), (MS, 2, 0, 4000)]) == [10 * MS, 6 * MS]


def test_equal_first_bits_are_served_in_the_order_of_sending() -> None:
    """First bits of all three at 3 ms; transfers 1, 2 and 3 ms one after another."""
    network = wan({(1, 0): 1, (2, 0): 2, (3, 0): 3}, MBPS)
    sends = [(0, 3, 0, 1000), (MS, 2, 0, 2000), (2 * MS, 1, 0, 3000)]
    assert arrivals_of(network, sends) == [4 * MS, 6 * MS, 9 * MS]
    assert arrivals_of(network, sends[::-1]) == [9 * MS, 6 * MS, 4 * MS]  # told ahead of time


def test_wan_latencies_are_those_of_the_table_by_direction() -> None:
    network = wan({(0, 1): 7.5, (1, 0): 30})
    assert arrivals_of(network, [(0, 0, 1, 9), (0, 1, 0, 9), (0, 0, 2, 9)]) == [
        7_500_000,
        30 * MS,
        50 * MS,
    ]


def test_wan_needs_a_row_for_each_device() -> None:
    with pytest.raises(ValueError, match="latency_matrix_ms has 4 rows, but there are 5 devices"):
        Fabric(wan({}), 5, Scheduler())


def test_wifi_frame_crosses_the_air_twice_whole() -> None:
    """Half the rate is left: air 0-4, hop 1, whole at the access point at 5; air 5-9, hop 1."""
    network = NetworkConfig(topology="wifi", link_latency_ms=1, bandwidth_mbps=MBPS / 2)
    assert arrivals_of(network, [(0, 1, 0, 4000)]) == [10 * MS]


def test_two_wifi_frames_at_once_take_turns() -> None:
    """A is in the air 0-4, B 4-8; A is at the access point at 5 and waits: 8-12; B 12-16."""
    network = NetworkConfig(topology="wifi", link_latency_ms=1, bandwidth_mbps=MBPS / 2)
    assert arrivals_of(network, [(0, 1, 0, 4000), (0, 2, 3, 4000)]) == [13 * MS, 17 * MS]


def test_wifi_air_is_free_between_a_frame_and_its_second_crossing() -> None:
    """Hop 5: A is in the air 0-4 and 9-13, B 4-8 and 13-17; both 5 more to the receiver."""
    network = NetworkConfig(topology="wifi", link_latency_ms=5, bandwidth_mbps=MBPS / 2)
    assert arrivals_of(network, [(0, 1, 0, 4000), (0, 2, 3, 4000)]) == [18 * MS, 22 * MS]


def test_two_wifi_devices_alone_see_the_rate_that_was_asked() -> None:
    """100 MB in messages that follow each other, at 178 Mbit/s: 4.494 s, and one crossing more."""
    network = NetworkConfig(topology="wifi", bandwidth_mbps=178)
    arrivals = arrivals_of(network, [(0, 0, 1, 1_000_000)] * 100)
    assert max(arrivals) / 1e9 == pytest.approx(100e6 * 8 / 178e6, rel=1e-6)


def stations(**settings: list[float]) -> NetworkConfig:
    return NetworkConfig(topology="wifi", **settings)


def test_wifi_stations_have_rates_and_ways_of_their_own() -> None:
    """4,000 bytes: 1 ms of the air at 32 Mbit/s, 4 at 8, 2 at 16. From 0 to 1: 0-1, way 3, air 4-8,
    way 5. From 1 to 2, a millisecond later: it waits for the air until 1, 1-5, way 5, at 10: 10-12,
    way 2."""
    network = stations(station_mbps=[32, 8, 16, 1], station_latency_ms=[3, 5, 2, 9])
    assert arrivals_of(network, [(0, 0, 1, 4000)]) == [13 * MS]
    assert arrivals_of(network, [(0, 2, 0, 4000)]) == [(2 + 2 + 1 + 3) * MS]
    assert arrivals_of(network, [(0, 0, 3, 0), (MS, 1, 2, 4000)])[1] == (1 + 4 + 5 + 2 + 2) * MS
    assert network.one_way_ns == 5 * MS  # the two nearest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topology": "switch", "station_mbps": [1.0]}, "it needs network.topology=wifi"),
        ({"station_mbps": [1.0, 0.0]}, "must hold numbers above 0, one a device"),
        ({"station_latency_ms": [-1.0]}, "must hold numbers of at least 0"),
        ({"station_mbps": [1.0], "bandwidth_mbps": 5.0}, "stands in the place of"),
        ({"station_latency_ms": [1.0], "link_latency_ms": 5.0}, "stands in the place of"),
    ],
)
def test_wifi_stations_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**({"topology": "wifi"} | settings))


def test_wifi_needs_a_number_for_each_device() -> None:
    with pytest.raises(ValueError, match="station_mbps has 2 numbers, but there are 3 devices"):
        arrivals_of(stations(station_mbps=[1.0, 2.0]), [], 3)


def mesh(*rows: tuple[float, float, float, float]) -> NetworkConfig:
    return NetworkConfig(topology="mesh", mesh_links=[list(row) for row in rows])


def test_mesh_takes_the_way_of_least_latency_over_another_device() -> None:
    """0-1-2 takes 1 + 2 ms where the own link takes 9; device 3 hangs on 2 by 4 ms more."""
    network = mesh((0, 1, 1, 0), (1, 2, 2, 0), (0, 2, 9, 0), (2, 3, 4, 0))
    sends = [(0, 0, 2, 9), (0, 2, 0, 9), (0, 3, 0, 9), (0, 0, 1, 9)]
    assert arrivals_of(network, sends) == [3 * MS, 3 * MS, 7 * MS, 1 * MS]


def test_mesh_bits_flow_through_links_of_different_rates() -> None:
    """4,000 bytes: 4 ms on 0-1, 8 ms on 1-2. First bit at 2 after 1 + 1 ms, last one 8 later.

    Back, the slow link comes first: bits reach 1 at 1-9, leave at once, and arrive 1 later.
    """
    network = mesh((0, 1, 1, MBPS), (1, 2, 1, MBPS / 2))
    assert arrivals_of(network, [(0, 0, 2, 4000), (0, 2, 0, 4000)], 3) == [10 * MS, 10 * MS]


def test_mesh_ways_over_one_link_wait_for_each_other() -> None:
    """To 2 over 1-2, transfer 4, latency 1: from 1 passes 0-4, from 0 (first bit at 1) 4-8."""
    network = mesh((0, 1, 1, 0), (1, 2, 1, MBPS))
    assert arrivals_of(network, [(0, 0, 2, 4000), (0, 1, 2, 4000)], 3) == [9 * MS, 5 * MS]
    assert arrivals_of(network, [(0, 2, 1, 4000), (0, 1, 2, 4000)], 3) == [5 * MS] * 2  # duplex


def test_slow_senders_share_a_fast_port() -> None:
    """Ten links of MBPS / 10 meet at one of MBPS: 1,000 bytes take 10 ms to come, and 1 ms to pass.

    All are there when their last bit is, not one after another; the eleventh, of 100 bytes over a
    fast link of its own, passes between them in 0.1 ms when the port has its turn for it.
    """
    hub, target = 0, 1
    slow = [(2 + i, hub, 0, MBPS / 10) for i in range(10)]
    network = mesh((hub, target, 0, MBPS), *slow, (12, hub, 0, MBPS * 1000))
    sends = [(0, 2 + i, target, 1000) for i in range(10)]
    arrivals = arrivals_of(network, [*sends, (5 * MS, 12, target, 100)], 13)
    assert arrivals[:10] == [10 * MS] * 10
    assert arrivals[10] == 10 * MS + MS // 10
    alone = arrivals_of(network, [sends[0], (5 * MS, 12, target, 100)], 13)
    assert alone == [10 * MS, 5 * MS + MS // 10]


def test_mesh_ties_go_to_fewer_hops() -> None:
    """0-3 by an own slow link of 2 ms or over 1 in 1 + 1 ms: the own link it is."""
    network = mesh((0, 1, 1, 0), (1, 3, 1, 0), (0, 3, 2, MBPS), (1, 2, 1, 0))
    assert arrivals_of(network, [(0, 0, 3, 1000)]) == [3 * MS]


def test_mesh_without_a_way_is_refused() -> None:
    with pytest.raises(ValueError, match="no way from device 0 to device 2; add a link"):
        Fabric(mesh((0, 1, 1, 0), (2, 3, 1, 0)), 4, Scheduler())


def jittery(seed: int = 3, mbps: float = 0) -> NetworkConfig:
    return NetworkConfig(
        topology="paper", link_latency_ms=1, jitter_ms=0.5, seed=seed, bandwidth_mbps=mbps
    )


@pytest.mark.parametrize("mbps", [0, MBPS])
def test_jitter_keeps_the_order_of_a_pair_and_repeats_with_its_seed(mbps: float) -> None:
    sends = [(i * 10_000, 0, 1, 5) for i in range(200)]
    arrivals, order = carry(jittery(mbps=mbps), sends)
    assert order == sorted(order)
    assert arrivals == sorted(arrivals)
    assert arrivals == arrivals_of(jittery(mbps=mbps), sends)
    assert arrivals != arrivals_of(jittery(seed=4, mbps=mbps), sends)


def test_jitter_is_bounded_and_reaches_both_ends() -> None:
    """4 hops of 1 ms, each up to half a millisecond off: 2 to 6 ms."""
    alone = [arrivals_of(jittery(seed), [(0, 0, 1, 5)])[0] for seed in range(300)]
    assert 2 * MS <= min(alone) < 2.2 * MS
    assert 5.8 * MS < max(alone) <= 6 * MS


def test_each_device_has_jitter_of_its_own() -> None:
    """What others send does not change what one's own messages meet."""
    own = [(i * MS, 0, 1, 5) for i in range(20)]
    others = [(i * MS, 2, 3, 5) for i in range(20)]
    both = arrivals_of(jittery(), [*own, *others])
    assert both[:20] == arrivals_of(jittery(), own)
    assert both[:20] != both[20:]


RING = mesh((0, 1, 2, MBPS), (1, 2, 2, MBPS), (2, 3, 2, MBPS), (3, 0, 2, MBPS))
MATRIX = {(a, b): 1.0 + a + 2 * b for a in range(4) for b in range(4)}
# A network, the least latency between two devices in ms, and how often a link passes a message
# (the air of Wi-Fi does it twice, at twice the rate).
NETWORKS: dict[str, tuple[NetworkConfig, Callable[[int, int], float], int]] = {
    "switch": (
        NetworkConfig(topology="switch", link_latency_ms=1, bandwidth_mbps=MBPS),
        lambda a, b: 2,
        1,
    ),
    "jitter": (jittery(mbps=MBPS), lambda a, b: 2, 1),
    "wan": (wan(MATRIX, MBPS), lambda a, b: MATRIX[a, b], 1),
    "mesh": (RING, lambda a, b: 2 * min((a - b) % 4, (b - a) % 4), 1),
    "wifi": (
        NetworkConfig(topology="wifi", link_latency_ms=1, bandwidth_mbps=MBPS),
        lambda a, b: 2,
        1,
    ),
}


def random_sends(seed: int, count: int = 400) -> list[Send]:
    """More than the links can pass in the time, in bursts; sizes over three orders."""
    draw = random.Random(seed)
    sends = []
    for _ in range(count):
        src, dst = draw.sample(range(4), 2)
        sends.append((draw.randrange(40) * MS, src, dst, round(10 ** draw.uniform(1, 4))))
    return sorted(sends, key=lambda send: send[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_any_pattern_keeps_order_latency_and_capacity(name: str, seed: int) -> None:
    network, latency_ms, crossings = NETWORKS[name]
    sends = random_sends(seed)
    arrivals, order = carry(network, sends)
    ends: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in order:
        _, src, dst, _ = sends[index]
        ends[src, dst].append(index)
    for indices in ends.values():
        assert indices == sorted(indices)
        assert [arrivals[i] for i in indices] == sorted(arrivals[i] for i in indices)
    links: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, (left_ns, src, dst, nbytes) in enumerate(sends):
        least = round(latency_ms(src, dst) * MS) + crossings * network.transfer_ns(nbytes)
        assert arrivals[index] >= left_ns + least
        if name == "wifi":
            links["air", 0].append(index)
        elif name != "mesh":  # where a device has several links
            links["up", src].append(index)
            links["down", dst].append(index)
    for indices in links.values():
        busy = sum(crossings * network.transfer_ns(sends[i][3]) for i in indices)
        assert busy <= max(arrivals[i] for i in indices) - min(sends[i][0] for i in indices)


@pytest.mark.parametrize("name", ["switch", "jitter", "wan", "wifi"])
def test_a_receiver_gets_one_message_at_a_time(name: str) -> None:
    """What ends later took its whole transfer since the one before it."""
    network = NETWORKS[name][0]
    sends = random_sends(9)
    arrivals = arrivals_of(network, sends)
    for device in range(4):
        there = sorted((arrivals[i], i) for i, send in enumerate(sends) if send[2] == device)
        for (before, _), (after, index) in pairwise(there):
            crossing_ns = network.transfer_ns(sends[index][3]) // (2 if name == "wifi" else 1)
            assert after - before >= crossing_ns


def test_every_topology_of_the_settings_has_a_class() -> None:
    assert set(TOPOLOGIES) == set(TOPOLOGY_NAMES)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_table_of_transfers_is_that_of_messages_alone(name: str) -> None:
    settings = replace(NETWORKS[name][0], jitter_ms=0.0)
    table = transfers_s(NETWORKS[name][0], 4, 1000)
    for src, dst in permutations(range(4), 2):
        assert table[src][dst] == arrivals_of(settings, [(0, src, dst, 1000)])[0] / 1e9
    assert [table[rank][rank] for rank in range(4)] == [0.0] * 4
