"""A job: everything the devices of one point need to know; and how it ended."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Plan
from tpi_bench.contract.request import Generation, Request, Turn
from tpi_bench.contract.runtime import ClockReading, Span

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime


class Program(ABC):
    """What the devices of a job run. Every system is one (`system.py`)."""

    uses_torch: ClassVar[bool] = True  # whether it needs what a device process has loaded already

    @abstractmethod
    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        """The rank program. The master returns what was generated, workers None."""

    def server(self, job: Job, rank: int) -> Callable[[int], None] | None:
        """What listens on a port of the device beside the rank program, and never returns.

        Of software that has sockets of its own; others reach it at `Runtime.address`.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Job:
    """Sent to each device. `blocks[rank]` are the rank's files; empty for systems that have none.

    `dtype` is what is computed in, `weights` what the weights are held in.

    `profiles` are those of the virtual testbed, one a device; `host` is this host's, where somebody
    asked for it. `checkpoint_path` is what a library opens instead of block files: a file or
    folder. `hosts` are the addresses of devices on several machines, one a device; none where they
    share this one.
    """

    program: Program
    config: ModelConfig
    dtype: str
    weights: str
    num_devices: int
    plan: Plan | None
    blocks: list[list[BlockFile]]
    request: Request
    network: NetworkConfig
    threads_per_device: int
    profiles: tuple[DeviceProfile, ...] = ()
    host: DeviceProfile | None = None
    cpus: list[list[int]] | None = None
    memory_bytes: tuple[int, ...] | None = None  # caps, one a device
    free_bytes: tuple[int, ...] | None = None  # of a device's memory, for what its ledger names
    timeout_s: float | None = None  # of the whole run, in wall time
    checkpoint_path: str | None = None
    trace: bool = False
    stream: bool = False
    talks: bool = False  # turn after turn from one KV cache, until nobody asks any more
    logits_path: str | None = None
    draft: Job | None = None  # of the model that drafts, on the master alone
    draft_name: str = ""  # its name, and what its weights are held in
    hosts: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()  # which each of them is on, by a name of it

    def memory_of(self, rank: int) -> float:
        """Bytes that a device may hold: its profile's or its cap; infinite where none is known."""
        if self.profiles:
            return self.profiles[rank].memory_bytes
        return self.memory_bytes[rank] if self.memory_bytes else math.inf

    def memory_setting(self, rank: int, megabytes: str) -> str:
        """How a device is given so much memory: by its cap, or by its profile where there is none;
        that of this host has what was measured.
        """
        name = self.profiles[rank].name if self.profiles else "this_host"
        if self.memory_bytes or name == "this_host":
            return f"device.memory_mb={megabytes}"
        return f"device.{name}.memory_gb={float(megabytes) / 1e3:.12g}"

    def free_of(self, rank: int) -> float:
        """Of that, what is left beside the process itself; infinite where nothing is known."""
        return self.free_bytes[rank] if self.free_bytes else self.memory_of(rank)

    def blocks_of(self, rank: int) -> list[BlockFile]:
        """All that a device reads: its own, and the master a draft model's; none of a library."""
        own = self.blocks[rank] if self.blocks else []
        return [*own, *(self.draft.blocks_of(0) if self.draft and rank == 0 else [])]

    def num_beside(self, rank: int) -> int:
        """Devices on the machine of this one, itself included."""
        return self.machines.count(self.machines[rank]) if self.machines else self.num_devices

    @property
    def opened_files(self) -> list[str]:
        """What the devices open: block files, or all that a library is given."""
        if self.blocks:
            own = {block.path for blocks in self.blocks for block in blocks}
            return sorted(own.union(self.draft.opened_files if self.draft else ()))
        if self.checkpoint_path is None:
            return []
        given = Path(self.checkpoint_path)
        files = given.rglob("*") if given.is_dir() else [given]
        own = {str(path) for path in files if path.is_file()}
        return sorted(own.union(self.draft.opened_files if self.draft else ()))


# A token of an answer as it comes -> whether that is enough, where the answer is a turn's.
OnToken = Callable[[int], bool | None]

# The answer to the turn before, if there was one -> the next turn; None ends the conversation.
NextTurn = Callable[[Generation | None], Turn | None]


@dataclass
class Output:
    """Where the master's tokens and logits go as they come, and its next turn comes from.

    `is_enough` is asked after each pass whether the answer shall end there.
    """

    on_token: Callable[[int], None] | None = None
    on_logits: Callable[[torch.Tensor], None] | None = None
    next_turn: NextTurn | None = None
    is_enough: Callable[[], bool] | None = None


@dataclass(kw_only=True)
class DeviceReport:
    """What was measured of one device, most of it by itself. Bytes and nanoseconds.

    `memory_limit_bytes` and `peak_cgroup_bytes` leave out what a forked device starts with.
    """

    rank: int
    pid: int
    num_threads: int
    kernel: str
    start_anon_bytes: float
    peak_anon_bytes: float
    peak_file_bytes: float
    weight_bytes_read: int
    bytes_sent: int | None  # None: by sockets of its own, which nobody counts
    bytes_received: int | None
    ledger_bytes: dict[str, int]
    read_mode: str
    disk_bytes_read: float = math.nan
    peak_cgroup_bytes: float = math.nan
    peak_pss_bytes: float = math.nan
    memory_limit_bytes: float = math.nan
    profile: str = "this host"
    clock_offset_ns: float = math.nan  # ahead of the master's, on another machine
    clock_error_ns: float = math.nan
    memory_bps: float = math.nan
    disk_bps: float = math.nan
    spans: list[Span] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LinkReading:
    """The way from a rank to another, between machines, as measured before the job."""

    src: int
    dst: int
    round_trip_s: float
    round_trip_min_s: float
    bandwidth_mbps: float
    tls_round_trip_s: float = math.nan  # in turns with the others, where TLS was asked for
    tls_bandwidth_mbps: float = math.nan


@dataclass(kw_only=True)
class Outcome:
    """How a job ended. `status` is ok, oom, timeout, device_lost or error."""

    status: str
    error: str | None = None
    generation: Generation | None = None
    devices: list[DeviceReport] = field(default_factory=list)
    round_trips_ns: list[int] = field(default_factory=list)
    clocks: list[ClockReading] = field(default_factory=list)  # of devices on several machines
    links: list[LinkReading] = field(default_factory=list)  # between machines
    by_round: list[Generation] = field(default_factory=list)  # in virtual time, see `testbed.py`
    num_events: int = 0  # of a virtual run
    memory_cap: str = "none"  # what enforces the caps
    peak_cgroup_bytes: float = math.nan  # the largest of any device, also of one that died
    pss_interval_s: float = math.nan
    wall_s: float = math.nan  # from the start of the devices to the end of the last
