"""Who answers and who gets on with its work: how a launcher tells a busy device from a hanging one.

Pure arithmetic on what devices have answered and when. Times are seconds of the launcher's clock,
which the caller reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tpi_bench.contract.job import Job
from tpi_bench.processes.control import Status

_QUESTIONS = 4  # that are asked within network.timeout_s


@dataclass
class _Signs:
    """Of one device's life."""

    answered_s: float  # when it last answered
    moved_s: float  # when it was last seen to get on with its work
    status: Status | None = None  # its last answer


class Watch:
    """Over the devices of one job, which may take `timeout_s` from now on."""

    def __init__(self, job: Job, now_s: float) -> None:
        self._patience_s = job.network.timeout_s
        self._interval_s = self._patience_s / _QUESTIONS
        self._end_s = math.inf if job.timeout_s is None else now_s + job.timeout_s
        self._ask_s = math.inf  # devices that are starting are not asked
        self._signs = [_Signs(now_s, now_s) for _ in range(job.num_devices)]

    def begin(self, now_s: float) -> None:
        """All devices have started, and answer from now on."""
        self._signs = [_Signs(now_s, now_s) for _ in self._signs]
        self._ask_s = now_s + self._interval_s

    @property
    def has_begun(self) -> bool:
        return self._ask_s < math.inf

    def due_in_s(self, now_s: float) -> float:
        """Until there is something to do: to ask, or to end the job."""
        return max(0.0, min(self._ask_s, self._end_s) - now_s)

    def is_late(self, now_s: float) -> bool:
        """Whether the job has taken as long as it may."""
        return now_s >= self._end_s

    def is_time_to_ask(self, now_s: float) -> bool:
        """Whether the devices are to be asked for a sign of life, a few times per time-out."""
        if now_s < self._ask_s:
            return False
        self._ask_s = now_s + self._interval_s
        return True

    def note(self, rank: int, status: Status, now_s: float) -> None:
        """An answer has come."""
        signs = self._signs[rank]
        before = signs.status
        if status.is_computing or before is None or status.num_steps != before.num_steps:
            signs.moved_s = now_s
        signs.answered_s, signs.status = now_s, status

    def hangs(self, running: Sequence[int], now_s: float) -> dict[int, str]:
        """Devices that do not answer, or get nowhere though they neither compute nor wait.

        A device that waits for a peer is not to blame while that peer is at work; when all wait for
        each other, the first is named.
        """
        limit = f"{self._patience_s:g} s (network.timeout_s)"
        found: dict[int, str] = {}
        for rank in running:
            signs = self._signs[rank]
            is_waiting = signs.status is not None and signs.status.waiting_for is not None
            if now_s - signs.answered_s > self._patience_s:
                found[rank] = f"hangs: it has not answered for {limit}"
            elif now_s - signs.moved_s > self._patience_s and not is_waiting:
                found[rank] = f"hangs: it has made no progress for {limit}"
        twice_s = 2 * self._patience_s
        if running and all(now_s - self._signs[rank].moved_s > twice_s for rank in running):
            waited = f"{twice_s:g} s (twice network.timeout_s)"
            found.setdefault(running[0], f"hangs: all devices have waited for {waited}")
        return found

    def forget(self, rank: int) -> None:
        """Its last answer is old."""
        self._signs[rank].status = None

    def has_answered(self, rank: int) -> bool:
        return self._signs[rank].status is not None

    def doing(self, rank: int) -> str:
        """What a device is at, as far as it has said."""
        if not self.has_begun:
            return "starting"
        status = self._signs[rank].status
        if status is not None and status.waiting_for is not None:
            return f"waiting for rank {status.waiting_for}"
        return "computing" if status is not None and status.is_computing else "running"
