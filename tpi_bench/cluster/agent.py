"""What runs on a node of a cluster: it says what the node is, keeps block files, starts devices.

`ray_cluster.py` makes it a Ray actor; it knows nothing of Ray. A device it starts is forked from a
clean interpreter, as on one host, and talks to the launcher over a connection of its own: what is
measured has nothing of Ray in it. Without the launcher, a device ends by itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tpi_bench.cluster.identities import Identity, can_encrypt, make_identity
from tpi_bench.cluster.link_probe import answer, ask
from tpi_bench.cluster.nodes import NodeFacts
from tpi_bench.cluster.store import BlockStore, Content
from tpi_bench.cluster.surroundings import as_ray_was_started
from tpi_bench.contract.job import Job, LinkReading
from tpi_bench.host import cache, cgroups
from tpi_bench.host.fork import fork_context, in_helper
from tpi_bench.host.machine import available_cpus, provenance
from tpi_bench.host.memory import PssSampler
from tpi_bench.processes.caps import Cap
from tpi_bench.processes.handle import DeviceHandle
from tpi_bench.processes.handshake import Listener, call, notice_cuts
from tpi_bench.processes.tls import Credentials, Tls

_PACKAGES = ("tpi_bench", "baselines")
_CALL_S = 10.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the launcher waits for a node's devices, and what proves that one belongs to the run.

    `rank` stands for the launcher in that proof. `key` makes the secret of the devices' own
    connections. `certificates` are those of all ranks, the launcher's last; none without TLS.
    """

    host: str
    port: int
    rank: int
    secret: bytes
    key: bytes
    certificates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What the node knows of a device that has ended."""

    how: str
    was_killed: bool  # by the kernel, for want of memory
    peak_cgroup_bytes: float
    peak_pss_bytes: float
    pss_interval_s: float
    logits: bytes | None = None


class NodeAgent:
    """One a node and a driver. Its methods may be called at the same time."""

    def __init__(self) -> None:
        as_ray_was_started()
        self._devices: dict[int, _Running] = {}
        self._identities: dict[int, Identity] = {}  # of ranks here, for the run to come
        self._lock = threading.Lock()

    def facts(self) -> NodeFacts:
        return facts_of_this_machine()

    def lacking(
        self, cache_dir: str | None, limit_bytes: float, wanted: Sequence[Content]
    ) -> list[int | None]:
        """Of each file, the bytes that are here already; None where it is whole."""
        return self._store(cache_dir, limit_bytes).lacking(wanted)

    def write(self, cache_dir: str | None, content: Content, offset: int, piece: bytes) -> None:
        self._store(cache_dir).write(content, offset, piece)

    def seal(self, cache_dir: str | None, contents: Sequence[Content]) -> list[str]:
        """The paths of files that are all here now."""
        store = self._store(cache_dir)
        for content in contents:
            if not store.path(content).is_file():
                store.seal(content)
        return [str(store.path(content)) for content in contents]

    def sees(self, stats: Sequence[tuple[Any, ...]]) -> bool:
        """Whether all of another's files are its own: it is that machine, and sees its disk."""
        return all(_stat_of(path) == tuple(rest) for path, *rest in stats)

    def make_identity(self, rank: int) -> str:
        """For a run; its certificate. The key stays here."""
        identity = self._identities[rank] = make_identity(rank)
        return identity.certificate

    def start(self, rank: int, job: Job, door: Door) -> str:
        """Start a device, which reports at the door; which kind of group holds its cap, if any.

        Raises InterpreterLost, or DeviceLost where the door cannot be reached.
        """
        asks = job.memory_bytes is not None
        group = next(iter(cgroups.make_groups(1, may_enable=asks)), None)
        cap = Cap(
            asked_bytes=job.memory_bytes[rank] if job.memory_bytes else None,
            group=group,
            uses_torch=job.program.uses_torch,
        )
        logits = None
        if job.logits_path and rank == 0:
            number, logits = tempfile.mkstemp(prefix="tpi_bench-logits-")
            os.close(number)
            job = replace(job, logits_path=logits)
        try:
            opened = call(rank, door.rank, (door.host, door.port), door.secret, _CALL_S)
            notice_cuts(opened)
            opened.setblocking(True)
            theirs = Connection(opened.detach())
            handle = DeviceHandle(
                rank,
                job,
                cap,
                fork_context(),
                theirs,
                door.key,
                self._credentials(rank, door.certificates),
            )
        except BaseException:
            if group is not None:
                group.remove()
            if logits is not None:
                os.unlink(logits)
            raise
        with self._lock:
            self._devices[rank] = _Running(handle, group, logits)
        return group.version if asks and group is not None else ""

    def how_it_died(self, rank: int) -> tuple[str, bool, float]:
        """A device has hung up: in words, whether the kernel killed it for want of memory, and the
        most that it had.
        """
        with self._lock:
            running = self._devices.get(rank)
        if running is None:
            return "has ended", False, math.nan
        return running.handle.how_it_died(), running.was_killed, running.peak_bytes

    def end(self, rank: int, *, in_peace: bool) -> Ending | None:
        """No device outlives its job; None where there is none of that rank any more."""
        with self._lock:
            running = self._devices.pop(rank, None)
        return None if running is None else running.end(in_peace)

    def end_all(self) -> None:
        """Whatever still runs."""
        for rank in list(self._devices):
            self.end(rank, in_peace=False)

    def open_link(
        self, host: str, own: int, asker: int, secret: bytes, certificates: tuple[str, ...] = ()
    ) -> int:
        """Answer the one who asks what the way here gives; at which port."""
        listener, tls = Listener(host), self._tls(own, certificates)
        threading.Thread(
            target=answer, args=(listener, own, asker, secret, tls), name="link", daemon=True
        ).start()
        return listener.port

    def ask_link(
        self,
        own: int,
        other: int,
        place: tuple[str, int],
        own_host: str,
        secret: bytes,
        certificates: tuple[str, ...] = (),
    ) -> LinkReading:
        return ask(own, other, place, own_host, secret, self._tls(own, certificates))

    def call(self, fn: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Call a function of this program here, where it may start processes of its own."""
        return fn(*args)

    def in_helper(self, fn: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Call a function of this program in a fresh process of this node, which may load torch."""
        return in_helper(fn, *args)

    def _credentials(self, rank: int, certificates: tuple[str, ...]) -> Credentials | None:
        if not certificates:
            return None
        key = self._identities[rank].key
        return Credentials(rank=rank, key=key, certificates=certificates)

    def _tls(self, rank: int, certificates: tuple[str, ...]) -> Tls | None:
        credentials = self._credentials(rank, certificates)
        return None if credentials is None else Tls(credentials)

    def _store(self, cache_dir: str | None, limit_bytes: float = math.inf) -> BlockStore:
        return BlockStore(cache.cache_folder(cache_dir) / "by_content", limit_bytes)


class _Running:
    """A device of this node, whose memory is looked at until it ends."""

    def __init__(
        self, handle: DeviceHandle, group: cgroups.MemoryGroup | None, logits: str | None
    ) -> None:
        self.handle = handle
        self._group, self._logits = group, logits
        self._pss = PssSampler()
        self._ending = threading.Event()
        self._looking = threading.Thread(target=self._look, name="pss", daemon=True)
        self._looking.start()

    @property
    def was_killed(self) -> bool:
        return self._group is not None and self._group.num_kills() > 0

    @property
    def peak_bytes(self) -> float:
        return math.nan if self._group is None else self._group.peak_bytes()

    def end(self, in_peace: bool) -> Ending:
        self._ending.set()
        self._looking.join()
        how = self.handle.how_it_died() if not self.handle.is_alive else "was ended"
        self.handle.end(in_peace=in_peace)
        peak, was_killed = self.peak_bytes, self.was_killed
        if self._group is not None:
            self._group.remove()
        logits = None
        if self._logits is not None:
            logits = Path(self._logits).read_bytes() or None
            os.unlink(self._logits)
        return Ending(
            how=how,
            was_killed=was_killed,
            peak_cgroup_bytes=peak,
            peak_pss_bytes=max(self._pss.peaks.values(), default=math.nan),
            pss_interval_s=self._pss.interval_s,
            logits=logits,
        )

    def _look(self) -> None:
        while not self._ending.wait(self._pss.due_in_s() + 0.01):
            self._pss.sample({self.handle.rank: self.handle.pid})


def facts_of_this_machine() -> NodeFacts:
    said = provenance()
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else said["host"]
    return NodeFacts(
        host=said["host"],
        machine=boot,
        network=f"{boot} {os.readlink(_NETWORK) if _NETWORK.exists() else ''}",
        cores=len(available_cpus()),
        addresses=tuple(own_addresses()),
        code=code_digest(),
        commit=said["commit"],
        python=said["python"],
        torch_version=said["torch_version"],
        free_memory_bytes=psutil.virtual_memory().available,
        can_encrypt=can_encrypt(),
    )


def own_addresses() -> list[str]:
    """IPv4 addresses of interfaces that are up."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return [
        each.address
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
        for each in addresses
        if each.family.name == "AF_INET"
    ]


def code_digest() -> str:
    """Of all files of this program that a device runs."""
    total = hashlib.sha256()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            total.update(f"{package}/{path.relative_to(root)}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


def stats_of(paths: Sequence[str]) -> list[tuple[Any, ...]]:
    """By which a file is known to be the same one."""
    return [(path, *_stat_of(path)) for path in paths]


def _stat_of(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
