"""The `virtual` testbed: devices of given profiles in virtual time, in one helper process.

Needs no torch itself: the launcher only checks the settings and hands the job over to `run.py`, in
a fresh process where costs are measured, else in the one that modelled runs share, or in a worker
of a sweep (`measure/side_by_side.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tpi_bench.contract.device import (
    DeviceProfile,
    ProfileSource,
    profile_names,
    profiles_for,
)
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import System
from tpi_bench.contract.testbed import Machines, Rates, Testbed
from tpi_bench.host.fork import in_helper
from tpi_bench.host.helper import in_place, shared_helper
from tpi_bench.host.interpreter import free_of_caps

COSTS = ("modelled", "measured")


@dataclass(frozen=True, kw_only=True)
class VirtualTestbed(Testbed):
    """`num_devices` null is as many as `device=` names. `proportions` strength follows profiles.

    `threads_per_device` is what computations are measured with. `fail_rank` fails at `fail_at_s`.
    """

    num_devices: int | None = setting(None, "devices; null: as many as device=[...] names")
    cost: str = setting(
        "modelled",
        "what computing takes: modelled by the device's profile, or measured here and scaled to it",
        COSTS,
    )
    threads_per_device: int = setting(1, "threads of measured computations")
    proportions: list[float] | str | None = setting(
        None,
        "shares of heads, columns or layers, one a device; strength follows the"
        " profiles; null is equal",
        ("null", "strength", "[2,1,1]"),
    )
    shares_disk: bool = setting(False, "all devices read from one disk")
    shares_memory: bool = setting(
        False, "all devices compute from one memory, which gives them no more together than it has"
    )
    counts_interpreter: bool = setting(
        False,
        "what Python and torch take on this host is taken off device.memory_mb, as of real devices",
    )
    interval: bool = setting(
        False,
        "also run with what each round of the devices' calibration found, for an 80 % interval",
    )
    follows_host: bool = setting(
        False,
        "what a point needs of device=this_host is measured again right before it: its disk, by the"
        " point's block files where they are there, and its products",
    )
    fail_rank: int | None = setting(None, "this device fails at fail_at_s of virtual time")
    fail_at_s: float = setting(0.0, "when it fails")
    trace: bool = setting(False, "also store every span of compute, sync, load wait and read")

    clock: ClassVar[str] = "virtual"
    ignores: ClassVar[tuple[str, ...]] = ("cache",)
    page_cache: ClassVar[str | None] = "virtual"

    def __post_init__(self) -> None:
        if self.num_devices is not None and self.num_devices < 1:
            raise ValueError(f"testbed.num_devices={self.num_devices} must be at least 1")
        if self.cost not in COSTS:
            raise ValueError(f"testbed.cost={self.cost} is unknown; choose {' or '.join(COSTS)}")
        if self.threads_per_device < 1:
            raise ValueError(
                f"testbed.threads_per_device={self.threads_per_device} must be at least 1"
            )
        if isinstance(self.proportions, str) and self.proportions != "strength":
            raise ValueError(
                f"testbed.proportions={self.proportions} must be a list of numbers, strength or "
                "null"
            )
        if not 0 <= self.fail_at_s < math.inf:
            raise ValueError(f"testbed.fail_at_s={self.fail_at_s} must be at least 0")

    @property
    def opens_files(self) -> bool:
        return self.cost == "measured"

    @property
    def note(self) -> str:
        meaning = "; the tokens mean nothing" if self.cost == "modelled" else ""
        return f"virtual time with {self.cost} cost{meaning}"

    def check(self, system: System, network: NetworkConfig, *, needs_tokens: bool) -> None:
        if system.stand_in:
            raise ValueError(
                f"system={system.name} runs a real library, which knows no virtual time; its "
                f"stand-in there is {system.stand_in}"
            )
        if self.cost == "modelled" and needs_tokens:
            raise ValueError(
                "check=true needs real tokens, and testbed.cost=modelled has none; use "
                "testbed.cost=measured or testbed=processes"
            )

    def threads(self, num_devices: int) -> int:
        """Threads of each device's measured computations."""
        return self.threads_per_device

    def profiles(
        self,
        named: Sequence[ProfileSource],
        num_devices: int,
        memory_bytes: Sequence[int] | None,
        cache_dir: Path,
    ) -> tuple[DeviceProfile, ...]:
        profiles = profiles_for([source.load(cache_dir) for source in named], num_devices)
        if memory_bytes and self.counts_interpreter:
            memory_bytes = _without_interpreter(memory_bytes)
        if memory_bytes:
            caps = zip(profiles, memory_bytes, strict=True)
            profiles = [replace(profile, memory_gb=nbytes / 1e9) for profile, nbytes in caps]
        return tuple(profiles)

    def free_bytes(
        self, profiles: Sequence[DeviceProfile], memory_bytes: Sequence[int] | None
    ) -> tuple[int, ...]:
        return tuple(profile.memory_bytes for profile in profiles)

    def needs_host(self, profiles: Sequence[DeviceProfile]) -> bool:
        """Times of this host are scaled to other devices by what both can do."""
        return self.cost == "measured" and any(p.name != "this_host" for p in profiles)

    def run(self, job: Job, on_token: Callable[[int], None] | None, cache_dir: Path) -> Outcome:
        """Run the job in virtual time. Tokens are told at the end: it does not last."""
        call = shared_helper().call if self.cost == "modelled" else in_helper
        outcome = self._run_by(call, job, cache_dir)
        if on_token and outcome.generation is not None and self.cost == "measured":
            for token in outcome.generation.token_ids:
                on_token(token)
        return outcome

    def run_here(self, job: Job, cache_dir: Path) -> Outcome:
        return self._run_by(in_place, job, cache_dir)

    def _run_by(self, call: Callable[..., Outcome], job: Job, cache_dir: Path) -> Outcome:
        """`call(fn, *args, timeout_s=...)` says in which process."""
        if self.fail_rank is not None and not 0 <= self.fail_rank < job.num_devices:
            raise ValueError(
                f"testbed.fail_rank={self.fail_rank} must be 0 to {job.num_devices - 1}"
            )
        failure = None if self.fail_rank is None else (self.fail_rank, self.fail_at_s)
        settings = {
            "cost": self.cost,
            "shares_disk": self.shares_disk,
            "shares_memory": self.shares_memory,
            "failure": failure,
            "interval": self.interval,
        }
        start_s = time.monotonic()
        try:
            outcome = call(_run_here, job, cache_dir, settings, timeout_s=job.timeout_s)
        except TimeoutError:
            reason = f"virtual time had not come to its end after {job.timeout_s:g} s (timeout_s)"
            outcome = Outcome(status="timeout", error=reason)
        outcome.memory_cap, outcome.wall_s = "virtual", time.monotonic() - start_s
        return outcome

    def rates(self, job: Job) -> Rates:
        return Rates(
            memory_bps=tuple(profile.memory_bps for profile in job.profiles),
            disk_bps=tuple(profile.disk_bps for profile in job.profiles),
            is_one_disk=self.shares_disk,
        )

    def one_way_s(self, job: Job, round_trips_ns: Sequence[int]) -> float:
        return job.network.one_way_ns / 1e9 if job.num_devices > 1 else 0.0

    def machines(self, job: Job) -> Machines:
        return Machines(
            names=profile_names(job.profiles),
            cores_per_device=job.profiles[0].num_used,
            share_cores=False,
        )

    def where(self, job: Job) -> str:
        names = profile_names(job.profiles)
        return f"{names}, {self.cost} cost, virtual time ({job.network.words})"


def _without_interpreter(memory_bytes: Sequence[int]) -> tuple[int, ...]:
    """What is left of each cap for a model. Raises ValueError where nothing is."""
    left = free_of_caps(memory_bytes) or ()
    for asked, nbytes in zip(memory_bytes, left, strict=True):
        if nbytes <= 0:
            raise ValueError(
                f"device.memory_mb={asked / 1e6:g} is not above the "
                f"{(asked - nbytes) / 1e6:.0f} MB that Python and torch take; give more, or "
                "testbed.counts_interpreter=false"
            )
    return left


def _run_here(job: Job, cache_dir: Path, settings: dict[str, Any]) -> Outcome:
    """In a process beside the launcher, which may load torch."""
    from tpi_bench.virtual.run import run_virtual

    return run_virtual(job, cache_dir, remembers=True, **settings)
