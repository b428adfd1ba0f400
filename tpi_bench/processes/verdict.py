"""Why a job failed: what the launcher hears of its devices, and which of it is the cause."""

from __future__ import annotations

import signal
from collections.abc import Collection
from dataclasses import dataclass, field

from tpi_bench.contract.runtime import ended_early

_ABORT = signal.SIGABRT.name


@dataclass
class Trouble:
    """What was heard of a failing job, by rank. `late` are devices that `timeout_s` has ended.

    `places` says where a rank is, behind its number, if that is another machine.
    """

    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    died: dict[int, str] = field(default_factory=dict)
    lost: list[tuple[int, int, str]] = field(default_factory=list)
    hangs: dict[int, str] = field(default_factory=dict)
    out_of_memory: dict[int, str] = field(default_factory=dict)
    late: dict[int, str] = field(default_factory=dict)
    places: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(
            self.failed or self.died or self.lost or self.hangs or self.out_of_memory or self.late
        )

    @property
    def is_final(self) -> bool:
        """Whether what was heard is the cause itself, so that nobody needs to be listened to."""
        return bool(self.hangs or self.late)

    def told(self, rank: int) -> bool:
        """Whether the device itself said why it ends."""
        saw_others = any(rank == teller for teller, _, _ in self.lost)
        return saw_others or rank in self.failed or rank in self.out_of_memory

    def verdict(self, ended: Collection[int] = ()) -> tuple[str, str]:
        """Status and error of the job, in which the devices `ended` have come to their end."""
        if self.out_of_memory:
            rank = min(self.out_of_memory)
            return "oom", f"{self._named(rank)} {self.out_of_memory[rank]}"
        if self.failed:
            rank = min(self.failed)
            status, reason = self.failed[rank]
            return status, f"{self._named(rank)} failed: {reason}"
        if self.died:
            # A program that aborts may do so because another is gone.
            rank = min(self.died, key=lambda rank: (_ABORT in self.died[rank], rank))
            return "device_lost", f"{self._named(rank)} {self.died[rank]}"
        for slow in (self.hangs, self.late):
            if slow:
                rank = min(slow)
                return "timeout", f"{self._named(rank)} {slow[rank]}"
        for rank, peer, _ in self.lost:
            if peer in ended:
                return "error", ended_early(peer, rank)
        _, peer, reason = self.lost[0]
        return "device_lost", f"{self._named(peer)} {reason}"

    def _named(self, rank: int) -> str:
        place = self.places.get(rank)
        return f"rank {rank}" if place is None else f"rank {rank} on {place}"


def how_it_died(exit_code: int | None) -> str:
    """Of a device that ended without a word."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; it may have run out of memory" if name in ("SIGKILL", "SIGABRT") else ""
        return f"was killed by signal {-exit_code} ({name}){hint}"
    return f"ended without a result (exit status {exit_code})"
