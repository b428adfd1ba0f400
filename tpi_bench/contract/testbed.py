"""What a testbed is: where ranks live, what a second is, and what it can and cannot do.

A new one is a folder beside `processes/` and `virtual/` whose dataclass implements `Testbed`, and
one YAML in `conf/testbed/`. Nothing else asks which testbed it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tpi_bench.contract.device import DeviceProfile, ProfileSource
from tpi_bench.contract.job import Job, NextTurn, OnToken, Outcome
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.system import System

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What each device's memory and disk give, in bytes a second."""

    memory_bps: tuple[float, ...]
    disk_bps: tuple[float, ...]
    is_one_disk: bool = False  # all devices read from the first


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a job's devices are, for its row."""

    names: str
    cores_per_device: float
    share_cores: bool


class Testbed(ABC):
    """The `testbed` group."""

    num_devices: int | None  # None: as many as `device=` names
    proportions: list[float] | str | None
    trace: bool
    follows_host: bool = False  # whether this host's profile is brought up to date for each point

    clock: ClassVar[str]  # wall or virtual
    cost: str  # of a computation: real, measured or modelled
    ignores: ClassVar[tuple[str, ...]] = ()  # groups of settings that change nothing here
    # Of `free_bytes`, what is kept back for what no ledger names, where the kernel enforces a cap.
    spare_bytes: ClassVar[int | None] = None
    can_talk: ClassVar[bool] = False  # whether it can `converse`
    encrypts: ClassVar[bool] = False  # whether it knows `network.tls`
    page_cache: ClassVar[str | None] = None  # None: the host's, in which `cache=` is made true

    @property
    def note(self) -> str:
        """What must be known of its rows before they are used."""
        return ""

    @property
    def measures_here(self) -> bool:
        """Whether this host's speed is in its rows, so that nothing else may be measured then."""
        return self.clock == "wall" or self.cost == "measured" or self.follows_host

    @property
    def opens_files(self) -> bool:
        """Whether block files are read; else only their sizes matter."""
        return True

    @abstractmethod
    def check(self, system: System, network: NetworkConfig, *, needs_tokens: bool) -> None:
        """Raises ValueError for what cannot be run here."""

    @abstractmethod
    def threads(self, num_devices: int) -> int:
        """Threads that each of `num_devices` devices is offered."""

    def cpus(self, num_devices: int, threads: int) -> list[list[int]] | None:
        """The cores that each device is pinned to; None where that is left to the kernel."""
        return None

    def profiles(
        self,
        named: Sequence[ProfileSource],
        num_devices: int,
        memory_bytes: Sequence[int] | None,
        cache_dir: Path,
    ) -> tuple[DeviceProfile, ...]:
        """One a device with its capped memory; none where devices are what they are."""
        return ()

    @abstractmethod
    def free_bytes(
        self, profiles: Sequence[DeviceProfile], memory_bytes: Sequence[int] | None
    ) -> tuple[int, ...] | None:
        """Memory of each device beside what it starts with, below 0 where that is too much already.

        None where it is not bounded.
        """

    def needs_host(self, profiles: Sequence[DeviceProfile]) -> bool:
        """Whether a run must know what this host can do."""
        return False

    def converse(self, job: Job, on_token: OnToken | None, next_turn: NextTurn) -> Outcome:
        """As `run`, of a job that `talks`: an answer ends where `on_token` says that it is enough.

        Raises ValueError where nobody can be talked with.
        """
        raise ValueError("task=chat talks with devices as they run; use testbed=processes")

    @abstractmethod
    def run(self, job: Job, on_token: Callable[[int], None] | None, cache_dir: Path) -> Outcome:
        """Run the job to its end. Never raises for a device's failure."""

    def placed(self, job: Job, cache_dir: Path) -> Job:
        """The job with its block files where its devices read them. Raises ValueError."""
        return job

    def at_devices(
        self, job: Job, fn: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
    ) -> list[T] | None:
        """What `fn` gives in a process on the machine of each device, side by side, called with
        the arguments of its rank; None where devices are on this one.
        """
        return None

    def device_threads(self, job: Job) -> list[int]:
        """Threads of each device."""
        return [job.threads_per_device] * job.num_devices

    def run_here(self, job: Job, cache_dir: Path) -> Outcome:
        """As `run`, in a process that is there for such runs, one at a time, and may load torch.

        Asked for only where nothing of this host is measured.
        """
        return self.run(job, None, cache_dir)

    def rates(self, job: Job) -> Rates | None:
        """Where they are known; None: this host's are to be measured."""
        return None

    @abstractmethod
    def one_way_s(self, job: Job, round_trips_ns: Sequence[int]) -> float:
        """The time that a message travels at least."""

    @abstractmethod
    def machines(self, job: Job) -> Machines:
        """What the devices are."""

    @abstractmethod
    def where(self, job: Job) -> str:
        """For people, behind the model's name: on what it runs."""
