"""Locks that name their holder. The kernel gives one back when the process that holds it dies.

A results folder that is written into, and the host while a point is measured on it, have one
holder at a time (`app/place.py`, `measure/turns.py`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import filelock
import psutil

from tpi_bench.host import cache

_POLL_S = 0.1
_LOOKS = 4  # at the note of a holder
_COMMAND_LENGTH = 120  # of a command line that is named


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock, for the message to the one who wants it."""

    pid: int
    command: str
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        command = shlex.join(psutil.Process().cmdline())
        if len(command) > _COMMAND_LENGTH:
            command = f"{command[:_COMMAND_LENGTH]}..."
        since = datetime.now().isoformat(sep=" ", timespec="seconds")
        return cls(pid=os.getpid(), command=command, since=since)

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}), since {self.since}"


class Lock:
    """One file, and one beside it that says who holds it. It is held while this object lives."""

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(path)
        self._note = path.with_suffix(".holder")

    def take(self) -> bool:
        """Whether it is ours now. Does not wait. Raises OSError where no file can be."""
        return self.wait(0.0)

    def wait(self, longest_s: float = math.inf) -> bool:
        """Come back when it is ours, True, or after so many seconds, False."""
        timeout_s = -1 if longest_s == math.inf else max(longest_s, 0.0)
        try:
            self._lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
        except filelock.Timeout:
            return False
        cache.write_json(self._note, asdict(Holder.this_process()))
        return True

    def give_back(self) -> None:
        """Let the next have it; nothing where it is not ours."""
        if self._lock.is_locked:
            self._note.unlink(missing_ok=True)
            self._lock.release()

    @property
    def holder(self) -> str:
        """Who is seen to hold it, in words; a note that a dead process left is not believed."""
        for _ in range(_LOOKS):  # whoever has just taken it has yet to write its note
            with contextlib.suppress(OSError, ValueError, TypeError):
                found = Holder(**json.loads(self._note.read_text()))
                if psutil.pid_exists(found.pid):
                    return str(found)
            time.sleep(_POLL_S / 2)
        return "another process"


@contextlib.contextmanager
def turn(
    folder: Path, on_wait: Callable[[str], None], longest_s: float = math.inf
) -> Iterator[None]:
    """Hold the lock of `folder`, after whoever came before.

    Those who wait stand in line: a holder that comes again at once, as a sweep with its next point,
    lets another go first. `on_wait` is told once for whom. After `longest_s`, 0 for who does not
    wait, `Occupied` says by whom the lock is held.
    """
    now, following = Lock(folder / "now.lock"), Lock(folder / "next.lock")
    if longest_s > 0:
        _stand_in_line(now, following, on_wait, longest_s)
    elif not now.take():
        raise Occupied(now.holder)
    try:
        yield
    finally:
        now.give_back()


class Occupied(RuntimeError):
    """Somebody else holds it: the text says who."""


def _stand_in_line(
    now: Lock, following: Lock, on_wait: Callable[[str], None], longest_s: float
) -> None:
    ends_s = time.monotonic() + longest_s
    try:
        is_first = following.take()
        if not is_first:
            on_wait(now.holder)
            if not following.wait(longest_s):
                raise Occupied(now.holder)
        if not now.take():
            if is_first:
                on_wait(now.holder)
            if not now.wait(ends_s - time.monotonic()):
                raise Occupied(now.holder)
    finally:
        following.give_back()
