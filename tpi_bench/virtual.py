"""The virtual runtime: the same rank programs as greenlets under a discrete-event scheduler.

Every rank is a greenlet that runs until it must wait; the scheduler then wakes whoever is next in
virtual time. Times are integer nanoseconds, events at one time happen in the order in which they
were planned, so a run is repeatable to the bit. What a computation costs is asked of `costs.py`,
what a message meets of `fabric.py`, what a read takes of the device's disk.
"""

from __future__ import annotations

import heapq
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from greenlet import greenlet

from tpi_bench.costs import Costs
from tpi_bench.disk import map_file
from tpi_bench.fabric import Fabric
from tpi_bench.links import NetworkConfig
from tpi_bench.paging import READ_AHEAD_BYTES, READS_IN_FLIGHT, PageCache
from tpi_bench.profiles import DeviceProfile, DiskQueue
from tpi_bench.runtime import BlockReadError, DeviceLost, Key, ReadHandle, SpanLog, kind_of
from tpi_bench.weights import BlockFile

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Nobody can go on; the message says who waits for whom."""


class OutOfMemory(RuntimeError):
    """A device's ledger has passed its memory."""


class Scheduler:
    """Virtual time. Used from one thread; `run` is the hub that all greenlets return to."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.num_events = 0
        self._sequence = 0
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._hub = greenlet.getcurrent()

    def at(self, time_ns: int, action: Callable[[], object]) -> None:
        """Plan `action` for a time that is not past."""
        self._sequence += 1
        heapq.heappush(self._events, (time_ns, self._sequence, action))

    def sleep_until(self, time_ns: int) -> None:
        """Let everything happen that comes before. Called by a greenlet."""
        if time_ns <= self.now_ns:
            return
        if self._events and self._events[0][0] <= time_ns:
            self.at(time_ns, greenlet.getcurrent().switch)
            self._hub.switch()
        else:  # nothing comes before: no need to switch there and back
            self.now_ns = time_ns
            self.num_events += 1

    def wait(self) -> None:
        """Give up the turn until an event resumes this greenlet."""
        self._hub.switch()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is planned."""
        return not self._events

    def run(self) -> None:
        """Until nothing is planned any more."""
        events = self._events
        while events:
            self.now_ns, _, action = heapq.heappop(events)
            self.num_events += 1
            action()


@dataclass
class _Read:
    """Handle of a read in virtual time."""

    runtime: VirtualRuntime
    end_ns: int
    error: BlockReadError | None = None

    def wait(self) -> None:
        self.runtime.world.scheduler.sleep_until(self.end_ns)
        if self.error:
            raise self.error


class VirtualRuntime:
    """One rank. Implements `runtime.Runtime`."""

    def __init__(self, rank: int, world: World, device: DeviceProfile, disk: DiskQueue) -> None:
        self.rank = rank
        self.world_size = world.num_devices
        self.world = world
        self.device = device
        self.log = SpanLog(trace=world.trace)
        self.ledger_bytes: dict[str, int] = defaultdict(int)
        self.bytes_read = 0
        self.waiting_for: int | None = None
        self._disk = disk
        self._scheduler = world.scheduler
        self._message_ns = device.message_ns
        self._inbox: dict[int, deque[tuple[int, torch.Tensor]]] = defaultdict(deque)
        self._computed_ns = 0  # when the last computation ended
        self._page_cache = PageCache()
        self._paged_in_ns = 0  # when what the next computation touches is all there
        self._mapped: dict[str, torch.Tensor] = {}
        self.greenlet: greenlet | None = None

    def now(self) -> int:
        return self._scheduler.now_ns

    def sleep(self, ns: int) -> None:
        self._scheduler.sleep_until(self._scheduler.now_ns + ns)

    def send(self, dst: int, buffer: torch.Tensor) -> None:
        start = self._scheduler.now_ns
        self._busy(self._message_ns)
        message = buffer if buffer.is_meta else buffer.clone()
        receiver = self.world.runtimes[dst]
        self.world.fabric.send(
            self.rank, dst, buffer.nbytes, lambda at: receiver.deliver(self.rank, at, message)
        )
        self.log.add("sync", "send", start, self._scheduler.now_ns)

    def deliver(self, src: int, arrival_ns: int, message: torch.Tensor) -> None:
        """A message of `src` is here from `arrival_ns` on."""
        self._inbox[src].append((arrival_ns, message))
        if self.waiting_for == src:
            self.waiting_for = None
            assert self.greenlet is not None
            self._scheduler.at(arrival_ns, self.greenlet.switch)

    def recv(self, src: int, out: torch.Tensor) -> None:
        start = self._scheduler.now_ns
        inbox = self._inbox[src]
        if inbox:
            self._scheduler.sleep_until(inbox[0][0])
        else:
            self.waiting_for = src
            self._scheduler.wait()
        _, message = inbox.popleft()
        if message.nbytes != out.nbytes:
            raise DeviceLost(src, f"sent {message.nbytes} bytes where {out.nbytes} were due")
        if not message.is_meta:
            out.copy_(message.view(out.shape))
        self._busy(self._message_ns)
        self.log.add("sync", "recv", start, self._scheduler.now_ns)

    def compute(self, key: Key, fn: Callable[[], T]) -> T:
        start = self._scheduler.now_ns
        result, ns = self.world.costs.run(key, fn, self.device, start - self._computed_ns)
        self._busy(max(ns, self._paged_in_ns - start))
        self._computed_ns = self._scheduler.now_ns
        self.log.add(kind_of(key), str(key[0]), start, self._scheduler.now_ns)
        return result

    def alloc(self, kind: str, nbytes: int) -> torch.Tensor:
        self.hold(kind, nbytes)
        return torch.empty(nbytes, dtype=torch.uint8)  # meta where costs are modelled

    def hold(self, kind: str, nbytes: int) -> None:
        self.ledger_bytes[kind] += nbytes
        total = sum(self.ledger_bytes.values())
        if total > self.device.memory_bytes:
            parts = ", ".join(f"{k} {v / 1e9:.2f}" for k, v in self.ledger_bytes.items())
            raise OutOfMemory(
                f"needs {total / 1e9:.2f} GB ({parts}), but {self.device.name} has "
                f"{self.device.memory_gb:g} GB"
            )

    def read(self, block: BlockFile, out: torch.Tensor) -> _Read:
        start = self._scheduler.now_ns
        self._busy(self._message_ns)
        self.log.add("load_wait", "request", start, self._scheduler.now_ns)
        end = self._disk.read(self._scheduler.now_ns, block.nbytes)
        self.bytes_read += block.nbytes
        self.log.add("read", block.key, self._scheduler.now_ns, end)
        error = None if out.is_meta else _read_now(block, out)
        return _Read(self, end, error)

    def map(self, block: BlockFile, nbytes: int) -> torch.Tensor:
        """The next computation lasts at least until the missing pages are there.

        They come in the order in which it touches them, so that it goes on meanwhile.
        """
        room = self.device.memory_bytes - sum(self.ledger_bytes.values())
        now = self._scheduler.now_ns
        missing = self._page_cache.touch(block.path, nbytes, room)
        if missing:
            self._paged_in_ns = self._disk.stream(now, missing, READ_AHEAD_BYTES, READS_IN_FLIGHT)
            self.bytes_read += missing
            self.log.add("read", block.key, now, self._paged_in_ns)
        data = self._mapped.get(block.path)
        if data is None:
            data = self._mapped[block.path] = _mapped(block)
        return data

    def waiting(self, handle: ReadHandle, key: str) -> None:
        start = self._scheduler.now_ns
        handle.wait()
        self.log.add("load_wait", key, start, self._scheduler.now_ns)

    def _busy(self, ns: int) -> None:
        if ns:
            self._scheduler.sleep_until(self._scheduler.now_ns + ns)


class World:
    """All ranks of one run, their network and the time they share."""

    def __init__(
        self,
        devices: Sequence[DeviceProfile],
        network: NetworkConfig,
        costs: Costs,
        *,
        shares_disk: bool = False,
        trace: bool = False,
    ) -> None:
        self.num_devices = len(devices)
        self.costs = costs
        self.trace = trace
        self.scheduler = Scheduler()
        self.fabric = Fabric(network, len(devices), self.scheduler)
        disks = [DiskQueue(device) for device in devices]
        self.runtimes = [
            VirtualRuntime(rank, self, device, disks[0 if shares_disk else rank])
            for rank, device in enumerate(devices)
        ]
        self.failed: dict[int, BaseException] = {}
        self._num_running = 0

    def fail_at(self, rank: int, time_ns: int) -> None:
        """The device is gone at that time, and with it the run."""

        def fail() -> None:
            if self._num_running and not self.scheduler.is_idle:  # else all wait for ever
                raise DeviceLost(rank, f"failed at {time_ns / 1e9:g} s of virtual time, as asked")

        self.scheduler.at(time_ns, fail)

    def run(self, program: Callable[[VirtualRuntime], T]) -> list[T]:
        """Run `program` on every rank to its end; results by rank.

        Raises Deadlock, or what a rank raised, with the rank in `failed`.
        """
        results: dict[int, T] = {}
        self._num_running = self.num_devices

        def body(runtime: VirtualRuntime) -> None:
            try:
                results[runtime.rank] = program(runtime)
                self._num_running -= 1
            except Exception as error:
                self.failed[runtime.rank] = error
                raise

        for runtime in self.runtimes:
            runtime.greenlet = greenlet(body)
            self.scheduler.at(0, _starter(runtime))
        try:
            with torch.inference_mode():
                self.scheduler.run()
            if len(results) < self.num_devices:
                raise Deadlock(self._who_waits())
        finally:
            self._end()
        return [results[rank] for rank in range(self.num_devices)]

    def _who_waits(self) -> str:
        waits = [
            f"rank {runtime.rank} waits for rank {runtime.waiting_for}"
            for runtime in self.runtimes
            if runtime.waiting_for is not None
        ]
        return "deadlock: " + ", ".join(waits)

    def _end(self) -> None:
        """Greenlets that wait for ever are thrown out, so that nothing holds their memory."""
        for runtime in self.runtimes:
            if runtime.greenlet is not None and not runtime.greenlet.dead:
                runtime.greenlet.throw()


def _starter(runtime: VirtualRuntime) -> Callable[[], object]:
    assert runtime.greenlet is not None
    start = runtime.greenlet.switch
    return lambda: start(runtime)


def _mapped(block: BlockFile) -> torch.Tensor:
    data = torch.empty(block.nbytes, dtype=torch.uint8)
    if data.is_meta:
        return data
    try:
        return torch.from_numpy(map_file(block))
    except OSError as error:
        raise BlockReadError(f"cannot map block {block.path}: {error.strerror}") from error


def _read_now(block: BlockFile, out: torch.Tensor) -> BlockReadError | None:
    """The block's bytes; when they count as being there is the disk's matter."""
    view, got = out.numpy().data, 0
    try:
        with open(block.path, "rb") as file:
            while got < block.nbytes:  # one call reads 2 GB at most
                count = os.preadv(file.fileno(), [view[got:]], block.data_offset + got)
                if not count:
                    break
                got += count
    except OSError as error:
        return BlockReadError(f"cannot read block {block.path}: {error.strerror}")
    if got < block.nbytes:
        missing = block.nbytes - got
        return BlockReadError(
            f"cannot read block {block.path}: the file ends {missing} bytes early"
        )
    return None
