"""The `cluster` testbed as a choice in `conf/testbed/`: devices are machines of a Ray cluster.

Everything that could be wrong with a node is found out before a device starts, in `check` and in
`placed`; `processes/launcher.py` does the running, with a crew of devices elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tpi_bench.cluster.agent import facts_of_this_machine
from tpi_bench.cluster.clocks import on_the_masters_clock
from tpi_bench.cluster.crew import ClusterCrew
from tpi_bench.cluster.identities import Identity, make_identity
from tpi_bench.cluster.links import measured_links
from tpi_bench.cluster.nodes import (
    Node,
    Place,
    chosen_nodes,
    data_host,
    refuse_too_little_memory,
    refuse_unfit_places,
    refuse_without_tls,
    share_machines,
    threads_of,
)
from tpi_bench.cluster.ray_cluster import NodeLost, RayCluster, cluster_at
from tpi_bench.cluster.shipping import Storage, ship
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job, LinkReading, NextTurn, OnToken, Outcome
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import System
from tpi_bench.contract.testbed import Machines, Testbed
from tpi_bench.host.interpreter import GROWTH_BYTES, free_of_caps
from tpi_bench.processes.launcher import run_job

T = TypeVar("T")
_ANSWER_S = 5.0
_FIRST_ANSWER_S = 60.0  # of an agent that is started for it
_HELPER_S = 300.0


@dataclass(frozen=True, kw_only=True)
class ClusterTestbed(Testbed):
    """One device a node. Links are what they are, so nothing of the `network` group is emulated."""

    address: str = setting(
        "auto", "of Ray's head, as `ray start --head` prints it; auto: the Ray of this machine"
    )
    num_devices: int | None = setting(
        None, "devices, a node each; null: one on each of testbed.nodes, or 2"
    )
    nodes: list[str] | None = setting(
        None,
        "the nodes in the order of ranks, each by its address or a resource of its own that it was "
        "started with (device:laptop1); null: this host's first, then by address",
    )
    share_nodes: bool = setting(False, "for trials: a node may have several devices")
    data_address: str | None = setting(
        None,
        "the network that devices talk in, as 192.168.2.0/24, where it is not the one of Ray's "
        "addresses",
    )
    threads_per_device: int | str = setting(
        "auto",
        "threads of each; auto: as many as its node has cores",
        ("auto", "1, 2, ..."),
    )
    proportions: list[float] | None = setting(
        None, "shares of heads, columns or layers, one a device, e.g. [2,1,1]; null is equal"
    )
    node_cache_dir: str | None = setting(
        None, "for block files, on each node (ADDRESS in it is the node's); null: its user's"
    )
    node_cache_gb: float | None = setting(
        None, "of block files that a node keeps; those used longest ago go; null: no limit"
    )
    share_files: bool = setting(
        True, "a node that is this machine and sees its disk reads block files where they are"
    )
    ship_code: bool = setting(False, "Ray brings this program's files to the nodes")
    trace: bool = setting(False, "also store every span of compute, sync, load wait and read")

    clock: ClassVar[str] = "wall"
    cost = "real"  # no setting
    spare_bytes: ClassVar[int | None] = GROWTH_BYTES
    can_talk: ClassVar[bool] = True
    encrypts: ClassVar[bool] = True
    ignores: ClassVar[tuple[str, ...]] = ("device",)

    def __post_init__(self) -> None:
        if self.num_devices is None:
            object.__setattr__(self, "num_devices", len(self.nodes) if self.nodes else 2)
        if self.num_devices < 1:  # type: ignore[operator]
            raise ValueError(f"testbed.num_devices={self.num_devices} must be at least 1")
        threads = self.threads_per_device
        if threads != "auto" and (not isinstance(threads, int) or threads < 1):
            raise ValueError(
                f"testbed.threads_per_device={threads} must be a whole number of at least "
                "1, or auto"
            )
        if self.node_cache_gb is not None and not self.node_cache_gb > 0:
            raise ValueError(
                f"testbed.node_cache_gb={self.node_cache_gb} must be above 0, or null for no limit"
            )

    @property
    def note(self) -> str:
        return "devices share nodes (testbed.share_nodes=true)" if self.share_nodes else ""

    def check(self, system: System, network: NetworkConfig, *, needs_tokens: bool) -> None:
        if system.max_devices == 1:
            raise ValueError(
                f"system={system.name} runs in one process of this host; use testbed=processes"
            )
        if not system.reads_blocks:
            raise ValueError(
                f"system={system.name} has sockets of its own, between processes of this host; use "
                "testbed=processes, or its own programs there and system=endpoint"
            )
        asked = [
            f"network.{name}={getattr(network, name):g}"
            for name in ("link_latency_ms", "jitter_ms", "bandwidth_mbps")
            if getattr(network, name)
        ]
        if asked or network.topology not in ("none", "switch", "paper"):
            asked = asked or [f"network={network.topology}"]
            raise ValueError(
                f"{asked[0]} is emulated, and testbed=cluster has links of its own; leave it out, "
                "or use testbed=processes or testbed=virtual"
            )
        places = self.places(anew=True)
        if network.tls:
            refuse_without_tls(places, _own_facts())

    def threads(self, num_devices: int) -> int:
        """Of the device that has the least; each has its own (`num_threads`)."""
        return min(self._threads())

    def free_bytes(
        self, profiles: Sequence[DeviceProfile], memory_bytes: Sequence[int] | None
    ) -> tuple[int, ...] | None:
        return free_of_caps(memory_bytes)

    def placed(self, job: Job, cache_dir: Path) -> Job:
        places = self.places()
        system = job.program
        assert isinstance(system, System)
        job = replace(
            job,
            hosts=tuple(place.host for place in places),
            machines=tuple(place.facts.machine for place in places),
        )
        plans = [system.streaming(job, rank) for rank in range(job.num_devices)]
        needed = [plan.kept_bytes + plan.area_bytes + GROWTH_BYTES for plan in plans]
        refuse_too_little_memory(places, needed)
        limit = math.inf if self.node_cache_gb is None else self.node_cache_gb * 1e9
        storage = Storage(cache_dir=self.node_cache_dir, limit_bytes=limit, share=self.share_files)
        with _told():
            blocks = ship(self.cluster, places, job.blocks, storage, cache_dir)
        return replace(job, blocks=blocks)

    def run(self, job: Job, on_token: Callable[[int], None] | None, cache_dir: Path) -> Outcome:
        return self._run(job, on_token, None)

    def converse(self, job: Job, on_token: OnToken | None, next_turn: NextTurn) -> Outcome:
        return self._run(job, on_token, next_turn)

    def _run(self, job: Job, on_token: OnToken | None, next_turn: NextTurn | None) -> Outcome:
        cluster, places = self.cluster, self.places()
        links: list[LinkReading] = []
        identity: Identity | None = None
        certificates: tuple[str, ...] = ()
        with _told():
            if job.network.tls:
                identity, certificates = self._identities(places)
            if job.num_devices > 1:
                links = measured_links(cluster, places, certificates)
        crew = ClusterCrew(
            job, cluster, places, self._threads(), cluster.own_address, identity, certificates
        )
        outcome = on_the_masters_clock(run_job(job, on_token, next_turn, crew))
        return replace(outcome, links=links)

    def _identities(self, places: Sequence[Place]) -> tuple[Identity, tuple[str, ...]]:
        """The launcher's own for this run, and the certificates of all ranks and its own."""
        identity = make_identity(len(places))
        calls = [(place.node, "make_identity", (rank,)) for rank, place in enumerate(places)]
        return identity, (*self.cluster.call_all(calls, _ANSWER_S), identity.certificate)

    def at_devices(
        self, job: Job, fn: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
    ) -> list[T] | None:
        calls = [
            (place.node, "in_helper", (fn, given))
            for place, given in zip(self.places(), arguments, strict=True)
        ]
        with _told():
            return self.cluster.call_all(calls, _HELPER_S)

    def device_threads(self, job: Job) -> list[int]:
        return self._threads()

    def one_way_s(self, job: Job, round_trips_ns: Sequence[int]) -> float:
        """Half the least round trip that was measured."""
        return min(round_trips_ns, default=0) / 2e9

    def machines(self, job: Job) -> Machines:
        places, threads = self.places(), self._threads()
        shared = share_machines(places)
        words = [f"{name} is the machine of {count}" for name, count in shared.items()]
        busy: dict[str, int] = {}
        for place, number in zip(places, threads, strict=True):
            busy[place.facts.machine] = busy.get(place.facts.machine, 0) + number
        crowded = any(busy[place.facts.machine] > place.facts.cores for place in places)
        return Machines(
            names=", ".join(place.node.address for place in places)
            + (f" ({'; '.join(words)})" if words else ""),
            cores_per_device=float(places[0].facts.cores),
            share_cores=crowded,
        )

    def where(self, job: Job) -> str:
        threads = sorted(set(self._threads()))
        plural = "s" if job.num_devices > 1 else ""
        share = ", sharing cores" if self.machines(job).share_cores else ""
        each = f"{threads[0]} threads each" if len(threads) == 1 else f"{threads} threads"
        return f"{job.num_devices} node{plural} {self.machines(job).names} ({each}{share})"

    @property
    def cluster(self) -> RayCluster:
        return cluster_at(self.address, self.ship_code)

    def _threads(self) -> list[int]:
        places = self.places()
        if self.threads_per_device != "auto":
            return [int(self.threads_per_device)] * len(places)
        return [threads_of(places, rank) for rank in range(len(places))]

    def places(self, *, anew: bool = False) -> list[Place]:
        """One a device, which answered when the point was last checked. Raises ValueError."""
        cluster = self.cluster
        key = repr((self.nodes, self.num_devices, self.share_nodes, self.data_address))
        if anew or key not in cluster.places:
            cluster.places[key] = self._found_places(cluster)
        return cluster.places[key]

    def _found_places(self, cluster: RayCluster) -> list[Place]:
        assert self.num_devices is not None
        known = cluster.nodes()
        while True:
            nodes = chosen_nodes(known, self.nodes, self.num_devices, share=self.share_nodes)
            try:
                places = [self._place(cluster, node) for node in nodes]
            except NodeLost as error:
                if self.nodes is not None:
                    raise ValueError(str(error)) from None
                known.remove(error.node)  # another may be there in its place
            else:
                refuse_unfit_places(places, _own_facts())
                return places

    def _place(self, cluster: RayCluster, node: Node) -> Place:
        patience_s = _ANSWER_S if cluster.has_agent(node) else _FIRST_ANSWER_S
        facts = cluster.call(node, "facts", timeout_s=patience_s)
        return Place(node, facts, data_host(node, facts, self.data_address))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """A node that is lost before a device starts is told as what cannot be run."""
    try:
        yield
    except NodeLost as error:
        raise ValueError(str(error)) from None


_own_facts = functools.lru_cache(maxsize=1)(facts_of_this_machine)
