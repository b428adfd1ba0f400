"""The machines of a cluster: which of them a job's devices are on, and what is wrong with them.

Pure: what a node says of itself comes from `agent.py`, by way of `ray_cluster.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """As Ray lists it."""

    id: str
    address: str
    resources: tuple[str, ...] = ()

    def is_called(self, name: str) -> bool:
        """Whether `name` is its address, or a resource that it was started with."""
        return name == self.address or name in self.resources


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a node says of itself. Nodes with the same `machine` are one machine.

    `code` is a digest of this program's files, so that a clone and an installation can be told
    apart or together; `addresses` are those it can be reached at. Loopback addresses are those of
    one `network` alone: of a machine, or of a container on it.
    """

    host: str
    machine: str
    network: str
    cores: int
    addresses: tuple[str, ...]
    code: str
    commit: str
    python: str
    torch_version: str
    free_memory_bytes: int
    can_encrypt: bool = True


@dataclass(frozen=True)
class Place:
    """Where one device of a job is: on a node, and at which address of it other devices call."""

    node: Node
    facts: NodeFacts
    host: str

    @property
    def words(self) -> str:
        """For people."""
        return f"node {self.node.address} ({self.facts.host})"


def chosen_nodes(
    known: Sequence[Node], asked: Sequence[str] | None, num_devices: int, *, share: bool
) -> list[Node]:
    """One node a device, in order: those asked for, or the first by address, this host's before.

    `known` is in that order. With `share` a node may have several. Raises ValueError.
    """
    found = list(known)
    if asked is not None:
        found = [_called(name, known) for name in asked]
        twice = [name for name, node in zip(asked, found, strict=True) if found.count(node) > 1]
        if twice and not share:
            raise ValueError(
                f"testbed.nodes={list(asked)} has {twice[0]} twice; name each node once, or let "
                "devices share nodes for a trial with testbed.share_nodes=true"
            )
    if len(found) < num_devices and not (share and found):
        of = f"testbed.nodes={list(asked)}" if asked is not None else "the cluster"
        raise ValueError(
            f"{of} has {len(found)} node{'s' * (len(found) != 1)} for testbed.num_devices="
            f"{num_devices}; start Ray on more machines (ray start --address=HOST:PORT), ask for "
            "fewer devices, or let them share nodes for a trial with testbed.share_nodes=true"
        )
    return [found[rank % len(found)] for rank in range(num_devices)]


def _called(name: str, known: Sequence[Node]) -> Node:
    found = [node for node in known if node.is_called(name)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(node.address for node in known) or "none"
    if not found:
        raise ValueError(f"testbed.nodes names {name}, which is no node; there are {there}")
    both = ", ".join(node.address for node in found)
    raise ValueError(f"testbed.nodes names {name}, which several nodes are: {both}; name each")


def data_host(node: Node, facts: NodeFacts, asked: str | None) -> str:
    """The node's address for messages between devices: the one in the network that is asked for.

    Raises ValueError.
    """
    if asked is None:
        return node.address
    try:
        network = ipaddress.ip_network(asked, strict=False)
    except ValueError:
        raise ValueError(
            f"testbed.data_address={asked} is no network; give one as 192.168.2.0/24"
        ) from None
    for address in facts.addresses:
        if ipaddress.ip_address(address) in network:
            return address
    raise ValueError(
        f"node {node.address} has no address in testbed.data_address={asked}; it has "
        f"{', '.join(facts.addresses) or 'none'}"
    )


def refuse_unfit_places(places: Sequence[Place], own: NodeFacts) -> None:
    """Raises ValueError, one line that names the node, for what cannot be measured together."""
    for place in places:
        _refuse_other_version(place, own)
    networks = {place.facts.network for place in places}
    for place in places:
        if ipaddress.ip_address(place.host).is_loopback and len(networks) > 1:
            raise ValueError(
                f"{place.words} has the data address {place.host}, which other machines cannot "
                "call; start Ray there with --node-ip-address=ADDRESS, or give "
                "testbed.data_address=NETWORK"
            )
    seen: dict[str, Place] = {}
    for place in places:
        other = seen.setdefault(place.host, place)
        if other.node != place.node:
            raise ValueError(
                f"{place.words} and {other.words} have the same data address {place.host}; give "
                "each node its own, or testbed.data_address=NETWORK"
            )


def _refuse_other_version(place: Place, own: NodeFacts) -> None:
    facts = place.facts
    if facts.code != own.code:
        raise ValueError(
            f"{place.words} has tpi_bench of {facts.commit[:20]}, and this host of "
            f"{own.commit[:20]}, with other files; install the same there, or let Ray bring it "
            "with testbed.ship_code=true"
        )
    theirs, ours = facts.torch_version.split("+")[0], own.torch_version.split("+")[0]
    if theirs != ours:
        raise ValueError(
            f"{place.words} has torch {theirs}, and this host {ours}; install the same there "
            "(pip install -c constraints.txt .)"
        )


def refuse_without_tls(places: Sequence[Place], own: NodeFacts) -> None:
    """Raises ValueError for a node, or this host, that cannot make a certificate."""
    for words, facts in (("this host", own), *((place.words, place.facts) for place in places)):
        if not facts.can_encrypt:
            raise ValueError(
                f"{words} lacks the package cryptography, which network.tls=true needs; install "
                "it there (pip install -c constraints.txt '.[cluster]')"
            )


def refuse_too_little_memory(places: Sequence[Place], needed_bytes: Sequence[int]) -> None:
    """Raises ValueError for a node that has not what its devices will hold."""
    needs: dict[Place, int] = {}
    for place, nbytes in zip(places, needed_bytes, strict=True):
        needs[place] = needs.get(place, 0) + nbytes
    for place, nbytes in needs.items():
        if nbytes > place.facts.free_memory_bytes:
            raise ValueError(
                f"{place.words} has {place.facts.free_memory_bytes / 1e9:.3g} GB of memory free, "
                f"and its share takes {nbytes / 1e9:.3g} GB; give it less with "
                "testbed.proportions, stream with system=tpi_auto or system.window=4, or use more "
                "nodes"
            )


def threads_of(places: Sequence[Place], rank: int) -> int:
    """Threads of a device whose node's cores are divided over its devices, at least one each."""
    beside = sum(place.facts.machine == places[rank].facts.machine for place in places)
    return max(1, places[rank].facts.cores // beside)


def share_machines(places: Sequence[Place]) -> Mapping[str, int]:
    """How many devices a machine has, of those that have several, by its name."""
    counts: dict[str, int] = {}
    names = {place.facts.machine: place.facts.host for place in places}
    for place in places:
        counts[place.facts.machine] = counts.get(place.facts.machine, 0) + 1
    return {names[machine]: count for machine, count in counts.items() if count > 1}
