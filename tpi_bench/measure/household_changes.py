"""What could be changed of a household with some money: `advise.py` asks what each would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tpi_bench.contract.network import NetworkConfig
from tpi_bench.measure.household import Household

# A gigabit switch: 0.2 ms from device to device, as measured between small computers.
_CABLE = NetworkConfig(topology="switch", link_latency_ms=0.1, bandwidth_mbps=1000.0)


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A household with one change; `settings` make it of the old one, on the command line."""

    words: str
    household: Household
    settings: dict[str, Any] = field(default_factory=dict)


def possible_changes(household: Household) -> Iterator[Changed]:
    """Twice the memory or a disk twice as fast for each kind of device, cables, another device."""
    kinds = dict.fromkeys(profile.name for profile in household.profiles)
    for name in kinds:
        count = sum(profile.name == name for profile in household.profiles)
        whose = f"each of the {count} {name}" if count > 1 else name
        yield _with_more(household, name, "memory_gb", f"twice the memory on {whose}")
    for name in kinds:
        yield _with_more(household, name, "disk_gb_per_s", f"a disk twice as fast on {name}")
    if household.num_devices > 1 and _is_slower_than_cable(household.network):
        yield Changed(
            words=f"cables to a gigabit switch instead of {household.network.topology}",
            household=replace(household, network=_CABLE),
            settings={
                "network": _CABLE.topology,
                "network.link_latency_ms": _CABLE.link_latency_ms,
                "network.bandwidth_mbps": _CABLE.bandwidth_mbps,
            },
        )
    if household.network.topology in ("switch", "paper", "wifi") and household.num_devices > 1:
        yield _with_another(household)


def _with_more(household: Household, name: str, number: str, words: str) -> Changed:
    profiles, value = [], 0.0
    for profile in household.profiles:
        if profile.name == name:
            value = 2 * getattr(profile, number)
            profile = replace(profile, **{number: value})
        profiles.append(profile)
    return Changed(
        words=words,
        household=replace(household, profiles=tuple(profiles)),
        settings={f"device.{name}.{number}": value},
    )


def _is_slower_than_cable(network: NetworkConfig) -> bool:
    if network.topology in ("wifi", "wan", "mesh", "paper"):
        return True
    is_narrow = 0 < network.bandwidth_mbps < _CABLE.bandwidth_mbps
    return network.link_latency_ms > _CABLE.link_latency_ms or is_narrow


def _with_another(household: Household) -> Changed:
    """One more of the strongest, connected as that is."""
    strongest = max(
        range(household.num_devices), key=lambda i: (household.profiles[i].strength, -i)
    )
    network, tables = household.network, dict[str, Any]()
    for table in ("station_mbps", "station_latency_ms"):
        rows = getattr(network, table)
        if rows:
            own = rows[: household.num_devices]
            tables[table] = [*own, own[strongest]]
    return Changed(
        words=f"another {household.profiles[strongest].name}",
        household=replace(
            household,
            choices=(*household.choices, household.choices[strongest]),
            profiles=(*household.profiles, household.profiles[strongest]),
            network=replace(network, **tables),
        ),
    )
