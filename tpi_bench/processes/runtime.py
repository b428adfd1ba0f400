"""The wall-clock runtime of one device: real compute, real sockets, real disk.

Implements `contract/runtime.py`; `device.py` makes one and hands it to the rank program.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.runtime import (
    Key,
    ReadHandle,
    SpanLog,
    check_message,
    check_peer,
    kind_of,
)
from tpi_bench.host.disk import DirectReader
from tpi_bench.host.memory import anonymous_area
from tpi_bench.host.thread_clock import ThreadClock
from tpi_bench.processes.mesh import Mesh, sleep_until

T = TypeVar("T")


class WallRuntime:
    """One rank on this host. `now` is CLOCK_MONOTONIC, which all processes of the host share."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        mesh: Mesh,
        reader: DirectReader,
        *,
        trace: bool,
        addresses: Sequence[str] = (),
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.log = SpanLog(trace=trace)
        self._clock = ThreadClock() if trace else None
        self.ledger_bytes: dict[str, int] = defaultdict(int)
        self.bytes_sent = 0
        self.bytes_received = 0
        self.is_computing = False
        self.num_steps = 0  # grows with every computation, message and read: a sign of life
        self._areas: list[torch.Tensor] = []  # kept for the look at memory after the program
        self._mesh = mesh
        self._reader = reader
        self._addresses = addresses

    def now(self) -> int:
        return time.monotonic_ns()

    def sleep(self, ns: int) -> None:
        """To the microsecond: the kernel wakes a sleeper late, so its last moment is spun away."""
        deadline_ns = time.monotonic_ns() + ns
        sleep_until(deadline_ns)
        while time.monotonic_ns() < deadline_ns:
            pass

    def send(self, dst: int, buffer: torch.Tensor) -> None:
        begun = self._now()
        check_peer(self.rank, dst, self.world_size)
        data = as_bytes(buffer)
        self.bytes_sent += data.nbytes
        self._mesh.send(dst, data)
        self._ended("sync", "send", begun)

    def recv(self, src: int, out: torch.Tensor) -> None:
        begun = self._now()
        check_peer(self.rank, src, self.world_size)
        self._mesh.recv(src, as_bytes(out))
        self.bytes_received += out.nbytes
        self.num_steps += 1
        self._ended("sync", "recv", begun)
        self._reader.notice()

    def address(self, rank: int) -> str:
        return self._addresses[rank]

    def compute(self, key: Key, fn: Callable[[], T]) -> T:
        self.is_computing = True
        begun = self._now()
        result = fn()
        self._ended(kind_of(key), str(key[0]), begun)
        self.is_computing = False
        self.num_steps += 1
        self._reader.notice()
        return result

    def alloc(self, kind: str, nbytes: int) -> torch.Tensor:
        """An area that is touched before use, so that no page fault is timed."""
        self.hold(kind, nbytes)
        tensor = torch.from_numpy(anonymous_area(nbytes))
        self.is_computing = True  # touching tens of gigabytes takes a while
        tensor.zero_()
        self.is_computing = False
        self._areas.append(tensor)
        return tensor

    def hold(self, kind: str, nbytes: int) -> None:
        self.ledger_bytes[kind] += nbytes

    def read(self, block: BlockFile, out: torch.Tensor) -> ReadHandle:
        begun = self._now()
        note = functools.partial(self._note_read, block.key)
        handle = self._reader.read(block.extent, out.numpy(), note)
        self._ended("load_wait", "request", begun)
        return handle

    def _note_read(self, key: str, start_ns: int, end_ns: int) -> None:
        self.num_steps += 1
        self.log.add("read", key, start_ns, end_ns)

    def map(self, block: BlockFile, nbytes: int, *, anew: bool = False) -> torch.Tensor:
        reader = self._reader
        return torch.from_numpy((reader.map_anew if anew else reader.map)(block.extent))

    def waiting(self, handle: ReadHandle, key: str) -> None:
        begun = self._now()
        handle.wait()
        self._ended("load_wait", key, begun)

    def _now(self) -> tuple[int, int]:
        """The time, and where spans are kept how long this thread has run."""
        return time.monotonic_ns(), self._clock.cpu_ns() if self._clock else 0

    def _ended(self, kind: str, key: str, begun: tuple[int, int]) -> None:
        (start_ns, ran_ns), (end_ns, now_ran_ns) = begun, self._now()
        if self._clock is None:
            self.log.add(kind, key, start_ns, end_ns)
            return
        cpu_ns = now_ran_ns - ran_ns
        waited_ns = self._clock.core_wait_ns(end_ns - start_ns - cpu_ns)
        self.log.add(kind, key, start_ns, end_ns, cpu_ns, waited_ns)


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """A contiguous CPU tensor's memory as uint8, without a copy. Raises ValueError."""
    check_message(tensor)
    return tensor.view(-1).view(torch.uint8).numpy()
