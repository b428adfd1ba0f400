"""The devices that somebody owns and what connects them, and who of them could work together.

A *team* is some of the devices in the order of ranks, as numbers of the household's: the master
first, the others from the strongest on. `ways.py` says how a team may run a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.virtual.network import transfers_s

Team = tuple[int, ...]

_MOST_DEVICES = 16
_ALL_TEAMS = 6  # kinds of devices up to which every team is looked at
_STATIONS = ("station_mbps", "station_latency_ms")


@dataclass(frozen=True, kw_only=True)
class Household:
    """`choices` are what `device=` calls the devices, `profiles` what they can do, one each."""

    choices: tuple[str, ...]
    profiles: tuple[DeviceProfile, ...]
    network: NetworkConfig

    def __post_init__(self) -> None:
        if len(self.choices) > _MOST_DEVICES:
            raise ValueError(
                f"device= names {len(self.choices)} devices; task=advise looks at up to "
                f"{_MOST_DEVICES}"
            )
        tables = {name: getattr(self.network, name) for name in _STATIONS}
        if self.network.topology == "wan":
            tables["latency_matrix_ms"] = self.network.latency_matrix_ms
        for name, rows in tables.items():
            if rows is not None and len(rows) < self.num_devices:
                raise ValueError(
                    f"network.{name} is for {len(rows)} devices, but device= names "
                    f"{self.num_devices}; give it a value for each, or another network"
                )
        if self.network.topology == "mesh":
            transfers_s(self.network, self.num_devices, 0)  # raises where one cannot be reached
        if self.network.topology == "none" and self.num_devices > 1:
            raise ValueError(
                "network=none says nothing of what connects the devices; choose network=switch or "
                "network=wifi, with network.link_latency_ms and network.bandwidth_mbps"
            )

    @property
    def num_devices(self) -> int:
        return len(self.choices)

    def kind(self, device: int) -> tuple[Any, ...]:
        """Equal for devices that can stand for each other."""
        own: list[Any] = [self.profiles[device]]
        for name in _STATIONS:
            rows = getattr(self.network, name)
            own.append(rows[device] if rows else None)
        if self.network.topology in ("wan", "mesh"):
            own.append(device)
        return tuple(own)

    def teams(self) -> list[Team]:
        """Every set of devices with every one of them as the master, once for devices alike.

        Of more than a few kinds of devices only the strongest and those with most memory together,
        led by the first two of them.
        """
        is_large = len({self.kind(device) for device in range(self.num_devices)}) > _ALL_TEAMS
        found: dict[tuple[Any, ...], Team] = {}
        for members in self._prefixes() if is_large else self._sets():
            ordered = sorted(members, key=lambda i: (-self.profiles[i].strength, i))
            for master in ordered[:2] if is_large else ordered:
                team = (master, *(i for i in ordered if i != master))
                found.setdefault(tuple(self.kind(device) for device in team), team)
        return [team for team in found.values() if self._is_connected(team)]

    def network_changes(self, team: Team) -> dict[str, Any]:
        """Settings of the network that are tables by device, as this team has them."""
        network, place = self.network, {device: rank for rank, device in enumerate(team)}
        found: dict[str, Any] = {}
        for name in _STATIONS:
            rows = getattr(network, name)
            if rows is not None:
                found[name] = [rows[device] for device in team]
        if network.topology == "wan":
            rows = network.latency_matrix_ms or []
            found["latency_matrix_ms"] = [[rows[a][b] for b in team] for a in team]
        if network.topology == "mesh":
            found["mesh_links"] = [
                [place[int(a)], place[int(b)], latency_ms, mbps]
                for a, b, latency_ms, mbps in network.mesh_links or []
                if int(a) in place and int(b) in place
            ]
        return found

    def _sets(self) -> Iterator[Sequence[int]]:
        for size in range(1, self.num_devices + 1):
            yield from itertools.combinations(range(self.num_devices), size)

    def _prefixes(self) -> Iterator[Sequence[int]]:
        keys = ("strength", "memory_gb", "disk_gb_per_s")
        for key in keys:
            ranked = sorted(
                range(self.num_devices), key=lambda i: (-getattr(self.profiles[i], key), i)
            )
            yield from (ranked[:size] for size in range(1, self.num_devices + 1))

    def _is_connected(self, team: Team) -> bool:
        """In a mesh, without the devices that are left out."""
        if self.network.topology != "mesh" or len(team) == 1:
            return True
        links = self.network_changes(team)["mesh_links"]
        reached, before = {0}, 0
        while len(reached) > before:
            before = len(reached)
            for a, b, *_ in links:
                if {a, b} & reached:
                    reached |= {a, b}
        return len(reached) == len(team)
