"""Memory caps of the `processes` testbed: `device.memory_mb`, held by the kernel.

A device lives in a cgroup of its own where that is possible. Its page cache counts there, as on a
small machine: cached pages are given up before the device is killed. Without cgroups RLIMIT_DATA
bounds what is reserved in private memory, touched or not, stacks of threads and private mappings
of files included; mapped and cached files otherwise do not count. The row's `memory_cap` says
which it was.

Devices are forked from an interpreter that has torch loaded, whose pages are charged elsewhere. The
limit is therefore `device.memory_mb` less the anonymous memory a device has when it starts (about
150 MB), unless the system says `uses_torch = False`: a program that needs none of it, such as
llama.cpp, is granted the whole. Code of libraries is shared and charged to nobody's cap; pages that
a device changes after the fork are charged a second time, so the cap errs on the strict side.
"""

from __future__ import annotations

import contextlib
import errno
import math
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from tpi_bench.contract.job import Job
from tpi_bench.host import cgroups
from tpi_bench.host.cgroups import MemoryGroup
from tpi_bench.host.memory import resident_bytes, status_bytes

NO_CAP = "none"
RESERVED = "limit on anonymous memory (RLIMIT_DATA)"
NOT_ENFORCED = "not enforced on this system"
_STACK_BYTES = 1 << 20


class CapTooSmall(ValueError):
    """The cap is used up before the device has done anything."""


@dataclass(frozen=True, kw_only=True)
class Cap:
    """What one device enters first of all. Sent to it."""

    asked_bytes: int | None
    group: MemoryGroup | None
    uses_torch: bool

    def enter(self) -> Limit:
        """Bound this process. Raises CapTooSmall."""
        base = round(resident_bytes()[0]) if self.uses_torch else 0
        limit = math.nan if self.asked_bytes is None else float(self.asked_bytes - base)
        if limit <= 0:
            raise CapTooSmall(
                f"device.memory_mb={_mb(self.asked_bytes or 0)} is not above the {_mb(base)} MB "
                "that a device has before it loads anything"
            )
        if self.group is not None and math.isnan(limit):
            with contextlib.suppress(OSError):  # it would only have been measured
                self.group.join()
        elif self.group is not None:
            self.group.set_limit(int(limit))
            self.group.join()
        elif sys.platform != "linux":
            limit = math.nan
        elif not math.isnan(limit):
            _limit_reserved(int(limit))
        return Limit(limit_bytes=limit, base_bytes=base)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a device may take, beside what it had when it entered."""

    limit_bytes: float = math.nan
    base_bytes: int = 0


class Caps:
    """The launcher's side: makes the groups of a job, reads their peaks and removes them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._groups: list[MemoryGroup] = []

    def make(self) -> None:
        """Also where no cap is asked for, because a group keeps its peak."""
        asks = self._job.memory_bytes is not None
        self._groups = cgroups.make_groups(self._job.num_devices, may_enable=asks)

    @property
    def kind(self) -> str:
        """The row's `memory_cap`."""
        if self._job.memory_bytes is None:
            return NO_CAP
        if self._groups:
            return self._groups[0].version
        return RESERVED if sys.platform == "linux" else NOT_ENFORCED

    def of(self, rank: int) -> Cap:
        memory = self._job.memory_bytes
        return Cap(
            asked_bytes=memory[rank] if memory else None,
            group=self._groups[rank] if self._groups else None,
            uses_torch=self._job.program.uses_torch,
        )

    def peak_bytes(self, rank: int) -> float:
        return self._groups[rank].peak_bytes() if self._groups else math.nan

    def was_killed(self, rank: int) -> bool:
        """Whether the kernel killed the device for want of memory."""
        return bool(self._groups) and self._groups[rank].num_kills() > 0

    def remove(self) -> None:
        for group in self._groups:
            group.remove()
        self._groups = []

    def oom_text(self, rank: int, limit: Limit, reason: str | None) -> str:
        """What was asked for and what was allowed. `reason` None: the kernel killed it."""
        if reason is None:
            reason = f"the kernel killed it with {_mb(self.peak_bytes(rank))} MB in use"
        memory = self._job.memory_bytes
        allowed = "this system has no more"
        if memory and not math.isnan(limit.limit_bytes):
            allowed = f"device.memory_mb={_mb(memory[rank])} allows {_mb(limit.limit_bytes)} MB"
            allowed += f" beside the {_mb(limit.base_bytes)} MB of its start" * bool(
                limit.base_bytes
            )
        return (
            f"ran out of memory: {reason}; its weights are {_mb(_weight_bytes(self._job, rank))} "
            f"MB; {allowed}"
        )


def _limit_reserved(nbytes: int) -> None:
    """Let this process reserve `nbytes` more of private memory."""
    import resource

    threading.stack_size(_STACK_BYTES)  # the usual 8 MB each would count in full
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    soft = status_bytes("VmData")[0] + nbytes
    soft = soft if most == resource.RLIM_INFINITY else min(soft, most)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, most))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, in any of the ways that Python and its libraries say it."""
    is_errno = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if is_errno or isinstance(error, MemoryError):
        return True
    text = str(error)
    return any(sign in text for sign in ("allocate memory", "bad_alloc", "can't start new thread"))


def _weight_bytes(job: Job, rank: int) -> int:
    """Of a device's block files, or of a library's files, those that hold weights."""
    if job.blocks:
        blocks = job.blocks[rank]
        ends = {block.path: block.nbytes for block in blocks if block.layer < 0}  # may be tied
        return sum(ends.values()) + sum(block.nbytes for block in blocks if block.layer >= 0)
    endings = (".safetensors", ".gguf", ".bin")
    whole = sum(Path(p).stat().st_size for p in job.opened_files if p.endswith(endings))
    return whole // job.num_devices


def _mb(nbytes: float) -> str:
    return "?" if math.isnan(nbytes) else f"{nbytes / 1e6:.4g}"
