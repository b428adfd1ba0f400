"""The launcher's crew whose devices are on the nodes of a cluster, started there by agents.

Each device reports over a TCP connection of its own to a door of this host, proved with a secret
that only Ray has carried; the launcher hears and watches it as one on this host. The kernel tells
within seconds of a machine that is gone or cut off.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from tpi_bench.cluster.agent import Door, Ending
from tpi_bench.cluster.identities import Identity
from tpi_bench.cluster.nodes import Place
from tpi_bench.cluster.ray_cluster import NodeLost, RayCluster
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.runtime import DeviceLost
from tpi_bench.host.fork import InterpreterLost
from tpi_bench.processes.caps import NO_CAP, RESERVED, Caps
from tpi_bench.processes.crew import Crew
from tpi_bench.processes.handle import Handle
from tpi_bench.processes.handshake import Listener, notice_cuts
from tpi_bench.processes.tls import Credentials, Tls, TlsConnection
from tpi_bench.processes.verdict import Trouble

_START_S = 60.0
_TLS_S = 20.0
_ASK_S = 1.5  # a node that does not say within so long how its device died is lost itself
_END_S = 5.0  # a device that is done comes to its own end
_KILL_S = 2.5
_NO_LOOK_S = 3600.0


class ClusterCrew(Crew):
    """`threads` are those of each device; `own_host` is this host's address as nodes see it.

    With TLS, `identity` is the launcher's, and `certificates` are those of all, its own last.
    """

    def __init__(
        self,
        job: Job,
        cluster: RayCluster,
        places: Sequence[Place],
        threads: Sequence[int],
        own_host: str,
        identity: Identity | None = None,
        certificates: Sequence[str] = (),
    ) -> None:
        self.job = job
        self.caps: NodeCaps = NodeCaps(job)
        self._cluster, self._places, self._threads = cluster, places, threads
        self._own_host = own_host
        self._certificates = tuple(certificates)
        self._tls: Tls | None = None
        if identity is not None:
            self._tls = Tls(
                Credentials(rank=job.num_devices, key=identity.key, certificates=self._certificates)
            )
        self._started: list[RemoteDevice] = []

    def start(self, devices: list[Handle], trouble: Trouble) -> None:
        trouble.places |= {rank: place.words for rank, place in enumerate(self._places)}
        rank, ranks = self.job.num_devices, set(range(self.job.num_devices))
        listener = Listener(self._own_host)
        door = Door(
            host=self._own_host,
            port=listener.port,
            rank=rank,
            secret=secrets.token_bytes(32),
            key=secrets.token_bytes(32),
            certificates=self._certificates,
        )
        deadline_ns = time.monotonic_ns() + round(_START_S * 1e9)
        with contextlib.closing(listener), ThreadPoolExecutor(1) as threads:
            accepted = threads.submit(listener.accept, rank, ranks, door.secret, deadline_ns)
            try:
                self._ask_agents(door, trouble)
            except BaseException:
                listener.give_up()
                raise
            if trouble:
                listener.give_up()
            try:
                sockets = accepted.result()
            except DeviceLost as error:
                if not trouble:
                    trouble.died[error.rank] = error.reason
                return
        for rank, connection in sorted(sockets.items()):
            notice_cuts(connection)
            place = self._places[rank]
            try:
                ours = self._opened(rank, connection)
            except OSError as error:
                trouble.died[rank] = f"could not be talked with under TLS ({error})"
                continue
            device = RemoteDevice(rank, ours, self._cluster, place)
            device.caps = self.caps
            devices.append(device)
            self._started.append(device)

    def _opened(self, rank: int, connection: socket.socket) -> Connection | TlsConnection:
        """The agent has proved itself; under TLS its device does, from its own process."""
        if self._tls is None:
            connection.setblocking(True)
            return Connection(connection.detach())
        return TlsConnection(self._tls.secured(connection, rank, _TLS_S, is_caller=False))

    def _ask_agents(self, door: Door, trouble: Trouble) -> None:
        """To start their devices, all at once."""
        asked = [
            (rank, place, self._cluster.ask(place.node, "start", rank, self._own(rank), door))
            for rank, place in enumerate(self._places)
        ]
        for rank, place, answer in asked:
            try:
                self.caps.kinds[rank] = self._cluster.take(place.node, answer, _START_S)
            except NodeLost as error:
                trouble.died[rank] = f"could not be started: it {error.reason}"
            except InterpreterLost as error:
                trouble.died[rank] = str(error).removeprefix(f"rank {rank} ")
            except DeviceLost as error:
                trouble.died[rank] = f"could not be started: this host {error.reason}"

    def _own(self, rank: int) -> Job:
        """The job as a device gets it."""
        return replace(self.job, threads_per_device=self._threads[rank])

    def due_in_s(self) -> float:
        return _NO_LOOK_S

    def look(self, running: Sequence[Handle]) -> None:
        """Agents do."""

    def end(self, outcome: Outcome) -> None:
        """Also of devices that were started and could not report."""
        for rank, place in enumerate(self._places):
            if all(device.rank != rank for device in self._started):
                _end_quietly(self._cluster, place, rank)
        endings = {device.rank: device.ending for device in self._started if device.ending}
        known = [e.peak_cgroup_bytes for e in endings.values()]
        peaks = [peak for peak in known if not math.isnan(peak)]
        outcome.memory_cap = self.caps.kind
        outcome.peak_cgroup_bytes = max(peaks, default=math.nan)
        outcome.pss_interval_s = max(
            (ending.pss_interval_s for ending in endings.values()), default=math.nan
        )
        for report in outcome.devices:
            ending, place = endings.get(report.rank), self._places[report.rank]
            report.profile = place.words
            if ending is None:
                continue
            report.peak_cgroup_bytes = ending.peak_cgroup_bytes
            seen = [report.peak_pss_bytes, ending.peak_pss_bytes]
            report.peak_pss_bytes = max((b for b in seen if not math.isnan(b)), default=math.nan)
        master = endings.get(0)
        if self.job.logits_path and master is not None and master.logits is not None:
            Path(self.job.logits_path).write_bytes(master.logits)


class NodeCaps(Caps):
    """What agents say of the groups that they have made."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.kinds: dict[int, str] = {}
        self.killed: set[int] = set()
        self.peaks: dict[int, float] = {}

    @property
    def kind(self) -> str:
        if self._job.memory_bytes is None:
            return NO_CAP
        return " and ".join(sorted({kind or RESERVED for kind in self.kinds.values()})) or RESERVED

    def peak_bytes(self, rank: int) -> float:
        return self.peaks.get(rank, math.nan)

    def was_killed(self, rank: int) -> bool:
        return rank in self.killed


class RemoteDevice(Handle):
    """A device on a node. `ending` is what the agent said of it in the end."""

    caps: NodeCaps

    def __init__(
        self,
        rank: int,
        connection: Connection | TlsConnection,
        cluster: RayCluster,
        place: Place,
    ) -> None:
        super().__init__(rank, connection)
        self._cluster, self._place = cluster, place
        self._is_lost = False
        self.ending: Ending | None = None

    def how_it_died(self) -> str:
        """The agent knows; where it is gone as well, the node is what was lost."""
        try:
            how, was_killed, peak_bytes = self._cluster.call(
                self._place.node, "how_it_died", self.rank, timeout_s=_ASK_S
            )
        except NodeLost as error:
            self._is_lost = True
            return f"is lost with its node, which {error.reason}"
        if was_killed:
            self.caps.killed.add(self.rank)
            self.caps.peaks[self.rank] = peak_bytes
        return str(how)

    def end(self, *, in_peace: bool) -> None:
        self.control.connection.close()  # without which a device ends by itself
        if self._is_lost:
            self._cluster.forget(self._place.node)
            return
        with contextlib.suppress(NodeLost):
            self.ending = self._cluster.call(
                self._place.node,
                "end",
                self.rank,
                in_peace=in_peace,
                timeout_s=_END_S if in_peace else _KILL_S,
            )
        if self.ending is not None:
            self.caps.peaks[self.rank] = self.ending.peak_cgroup_bytes


def _end_quietly(cluster: RayCluster, place: Place, rank: int) -> None:
    with contextlib.suppress(NodeLost):
        cluster.call(place.node, "end", rank, in_peace=False, timeout_s=_ASK_S)
