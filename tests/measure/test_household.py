"""Who of a household could work together, and what connects them then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tpi_bench.contract.device import ideal_device
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.measure.household import Household
from tpi_bench.measure.household_changes import possible_changes

WEAK = replace(ideal_device("weak"), memory_gb=4.0, memory_gb_per_s=10.0, disk_gb_per_s=1.0)
STRONG = replace(WEAK, name="strong", memory_gb_per_s=50.0)
SWITCH = NetworkConfig(topology="switch", link_latency_ms=0.1, bandwidth_mbps=1000)
STATIONS = NetworkConfig(
    topology="wifi", station_mbps=[100.0, 200.0, 300.0], station_latency_ms=[1.0, 2.0, 3.0]
)


def household(*profiles: object, network: NetworkConfig = SWITCH) -> Household:
    return Household(
        choices=tuple(profile.name for profile in profiles),  # type: ignore[attr-defined]
        profiles=profiles,  # type: ignore[arg-type]
        network=network,
    )


def test_devices_that_are_alike_stand_for_each_other() -> None:
    four = household(WEAK, WEAK, WEAK, WEAK)
    assert four.teams() == [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]


def test_each_can_be_the_master_and_the_others_follow_by_strength() -> None:
    teams = household(WEAK, WEAK, STRONG).teams()
    assert teams == [(0,), (2,), (0, 1), (2, 0), (0, 2), (2, 0, 1), (0, 2, 1)]


def test_a_place_in_the_network_makes_a_difference() -> None:
    mixed = household(WEAK, WEAK, WEAK, network=STATIONS)
    assert len(mixed.teams()) == 3 + 6 + 3
    assert mixed.network_changes((2, 0)) == {
        "station_mbps": [300.0, 100.0],
        "station_latency_ms": [3.0, 1.0],
    }


def test_the_table_of_a_wide_network_follows_the_team() -> None:
    matrix = [[0.0, 1.0, 2.0], [3.0, 0.0, 4.0], [5.0, 6.0, 0.0]]
    far = NetworkConfig(topology="wan", latency_matrix_ms=matrix)
    changes = household(WEAK, WEAK, WEAK, network=far).network_changes((2, 0))
    assert changes == {"latency_matrix_ms": [[0.0, 5.0], [2.0, 0.0]]}


def test_a_team_that_a_mesh_does_not_connect_is_none() -> None:
    chain = NetworkConfig(topology="mesh", mesh_links=[[0, 1, 1, 100], [1, 2, 1, 100]])
    three = household(WEAK, WEAK, WEAK, network=chain)
    assert {frozenset(team) for team in three.teams() if len(team) == 2} == {
        frozenset((0, 1)),
        frozenset((1, 2)),
    }
    assert three.network_changes((1, 2)) == {"mesh_links": [[0, 1, 1, 100]]}


def test_of_many_kinds_the_strongest_and_the_roomiest() -> None:
    many = [
        replace(WEAK, name=f"d{i}", memory_gb=20.0 - i, memory_gb_per_s=9.0 + i) for i in range(9)
    ]
    teams = household(*many).teams()
    assert (8,) in teams  # the strongest
    assert (0,) in teams  # with most memory
    assert max(map(len, teams)) == 9
    assert len(teams) < 60


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (NetworkConfig(), "network=none says nothing of what connects"),
        (replace(STATIONS, station_mbps=[1.0, 2.0]), r"station_mbps is for 2 devices.* names 3"),
        (
            NetworkConfig(topology="wan", latency_matrix_ms=[[0.0, 1.0], [1.0, 0.0]]),
            "latency_matrix_ms is for 2 devices",
        ),
        (
            NetworkConfig(topology="mesh", mesh_links=[[0, 1, 1, 100]]),
            "no way from device 0 to device 2",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(network: NetworkConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        household(WEAK, WEAK, STRONG, network=network)


def test_what_could_be_changed_of_it() -> None:
    found = {c.words: c for c in possible_changes(household(STRONG, WEAK, WEAK, network=STATIONS))}
    memory = found["twice the memory on each of the 2 weak"]
    assert [profile.memory_gb for profile in memory.household.profiles] == [4.0, 8.0, 8.0]
    assert memory.settings == {"device.weak.memory_gb": 8.0}
    disk = found["a disk twice as fast on strong"]
    assert [profile.disk_gb_per_s for profile in disk.household.profiles] == [2.0, 1.0, 1.0]
    cable = found["cables to a gigabit switch instead of wifi"]
    assert cable.settings["network"] == "switch"
    assert cable.household.network.bandwidth_mbps == 1000
    more = found["another strong"].household
    assert more.choices == ("strong", "weak", "weak", "strong")
    assert more.network.station_mbps == [100.0, 200.0, 300.0, 100.0]


def test_a_gigabit_switch_needs_no_cables() -> None:
    words = [changed.words for changed in possible_changes(household(WEAK, WEAK))]
    assert not any("cables" in text for text in words)
