"""A job: everything the devices of one point need to know. Sent to each device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tpi_bench.links import NetworkConfig
from tpi_bench.models import ModelConfig
from tpi_bench.plans import Plan
from tpi_bench.profiles import DeviceProfile
from tpi_bench.weights import BlockFile
from tpi_bench.workload import Generation, Request

if TYPE_CHECKING:
    import torch

    from tpi_bench.runtime import Runtime


class DeviceProgram(Protocol):
    """What a device runs: the part of a system that lives on the devices."""

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        """The rank program. The master returns what was generated, workers None."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """`blocks[rank]` are the rank's files; empty for systems that read the checkpoint."""

    program: DeviceProgram
    config: ModelConfig
    dtype: str
    num_devices: int
    plan: Plan | None
    blocks: list[list[BlockFile]]
    request: Request
    network: NetworkConfig
    threads_per_device: int
    devices: tuple[DeviceProfile, ...] = ()  # of the virtual testbed
    cpus: list[list[int]] | None = None
    memory_bytes: tuple[int, ...] | None = None  # caps, one a device
    timeout_s: float | None = None  # of the whole run, in wall time
    files: str | None = None  # what a library opens
    trace: bool = False
    stream: bool = False
    logits_path: str | None = None


@dataclass
class Output:
    """Where the master's tokens and logits go as they come."""

    on_token: Callable[[int], None] | None = None
    on_logits: Callable[[torch.Tensor], None] | None = None


@dataclass(kw_only=True)
class DeviceReport:
    """What was measured of one device, most of it by itself. Bytes and nanoseconds.

    `memory_limit_bytes` and `peak_cgroup_bytes` leave out what a forked device starts with.
    """

    rank: int
    pid: int
    num_threads: int
    start_anon_bytes: float
    peak_anon_bytes: float
    peak_file_bytes: float
    weight_bytes_read: int
    ledger_bytes: dict[str, int]
    read_mode: str
    disk_bytes_read: float = math.nan
    peak_cgroup_bytes: float = math.nan
    peak_pss_bytes: float = math.nan
    memory_limit_bytes: float = math.nan
    profile: str = "this host"
    spans: list[list[Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class Outcome:
    """How a job ended. `status` is ok, oom, timeout, device_lost or error."""

    status: str
    error: str | None = None
    generation: Generation | None = None
    devices: list[DeviceReport] = field(default_factory=list)
    round_trips_ns: list[int] = field(default_factory=list)
    num_events: int = 0  # of a virtual run
    memory_cap: str = "none"  # what enforces the caps
    peak_cgroup_bytes: float = math.nan  # the largest of any device, also of one that died
    pss_interval_s: float = math.nan
    wall_s: float = math.nan  # from the start of the devices to the end of the last
