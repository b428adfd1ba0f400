"""The virtual runtime: the same rank programs as greenlets under a discrete-event scheduler.

Every rank is a greenlet with a clock of its own, which runs ahead of the world's: what nobody else
can notice (it computes, waits for its own disk) only moves that clock on. What others do notice, a
message above all, is planned for its time, and the scheduler lets it happen in order; a rank gives
up its turn where it waits for a message, or must know what has happened by its time (`catch_up`).

Times are integer nanoseconds, events at one time happen in the order in which they were planned, so
a run is repeatable to the bit. What a computation costs is asked of `costs.py`, what a message
meets of `network.py`, what a read takes of `disk.py`. All ranks of one run are a `World`
(`world.py`).
"""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from greenlet import greenlet

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.roofline import work_ns
from tpi_bench.contract.runtime import (
    BlockReadError,
    Key,
    ReadHandle,
    SpanLog,
    check_message,
    check_peer,
    check_size,
    kind_of,
)
from tpi_bench.host.disk import map_file, read_file
from tpi_bench.host.memory import anonymous_area
from tpi_bench.virtual.disk import (
    ADVISED_BYTES,
    FAULT_NS_PER_BYTE,
    READ_AHEAD_BYTES,
    READS_IN_FLIGHT,
    DiskQueue,
    DiskRead,
    PageCache,
)

if TYPE_CHECKING:
    from tpi_bench.virtual.world import World

T = TypeVar("T")
# A core that has slept so long takes whoever wakes it longer: on a virtual machine of ours a
# message to one that had slept 3 ms cost nothing more, after 20 ms 50 us.
_ASLEEP_NS = 10_000_000
# A core that has waited so long computes slowly at first, for so long.
_LONG_WAIT_NS = 500_000
_COLD_NS = 300_000
_SWEEPS_NS = 1_000_000  # of computing: Python is slower directly behind it


class OutOfMemory(RuntimeError):
    """A device's ledger has passed its memory."""


class _Python(NamedTuple):
    """What it takes before the next verb, and where that asks for a read."""

    step_ns: int
    asking_ns: int


# A message at its receiver: when, bytes, and data, None where costs are modelled and there is none.
Arrival = tuple[int, int, torch.Tensor | None]


@dataclass
class TimedRead:
    """Handle of a read: over when its disk says so, which depends on what goes on meanwhile."""

    runtime: VirtualRuntime
    read: DiskRead
    error: BlockReadError | None

    def wait(self) -> None:
        self.runtime.await_read(self.read)
        if self.error:
            raise self.error


class VirtualRuntime:
    """One rank. Implements `contract.runtime.Runtime`."""

    def __init__(self, rank: int, world: World, profile: DeviceProfile, disk: DiskQueue) -> None:
        self.rank = rank
        self.world_size = world.num_devices
        self.world = world
        self.profile = profile
        self.log = SpanLog(trace=world.trace)
        self.ledger_bytes: dict[str, int] = defaultdict(int)
        self.bytes_read = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.waiting_for: int | None = None
        self.greenlet: greenlet | None = None
        self.num_steps = 0  # of its clock, and ends of waiting for a message
        self._now_ns = 0
        self._disk = disk
        self._scheduler = world.scheduler
        self._costs = world.costs
        self._message_ns = profile.message_ns
        self._receive_ns = profile.receive_ns
        self._ns_per_sent_byte = profile.ns_per_sent_byte
        self._ns_per_received_byte = profile.ns_per_received_byte
        self._ns_per_asked_byte = profile.ns_per_asked_byte
        self._wake_ns = profile.wake_ns
        self._usual = _Python(profile.step_ns, profile.asking_ns)
        self._swept = _Python(
            profile.step_ns + profile.swept_ns, profile.asking_ns + profile.swept_asking_ns
        )
        self._next = self._usual
        self._inbox: dict[int, deque[Arrival]] = {}  # by sender, of those that are known
        self._receivers: dict[int, VirtualRuntime] = {}  # that it has sent to
        self._computed_ns = 0  # when the last computation ended
        self._idle_ns = 0  # of the last long wait before a computation,
        self._warm_ns = 0  # and how long it has computed since
        self._page_cache = PageCache()
        self._paged_in_ns = 0  # when what the next computation touches is all there
        self._faults_ns = 0  # of the next computation
        self._mapped: dict[str, torch.Tensor] = {}
        self._is_slow_when_streamed = profile.streamed_ns + profile.ns_per_streamed_byte > 0
        self._just_read_bytes = 0  # since the last computation, where that matters
        self._touched_bytes: dict[Key, int] = {}
        self._stretches: dict[tuple[Key, int], float] = {}  # by the number that compute at once

    def now(self) -> int:
        return self._now_ns

    def sleep(self, ns: int) -> None:
        if ns > 0:
            self._go_on_to(self._now_ns + ns)

    def _go_on_to(self, time_ns: int) -> None:
        self._now_ns = time_ns
        self.num_steps += 1

    def catch_up(self) -> None:
        """Let everything happen in the world that comes before this device's time."""
        self._scheduler.sleep_until(self._now_ns)

    def address(self, rank: int) -> str:
        """No program of others lives in virtual time: their systems are refused there."""
        raise ValueError(f"device {rank} has no address in virtual time")

    def send(self, dst: int, buffer: torch.Tensor) -> None:
        check_message(buffer)
        receiver = self._receivers.get(dst) or self._new_receiver(dst)
        start = self._now_ns + self._next.step_ns
        self._next = self._usual
        nbytes = buffer.nbytes
        end = start + self._message_ns + round(nbytes * self._ns_per_sent_byte)
        if self._wake_ns and self._finds_asleep(receiver, start):
            end += self._wake_ns
        data = None if buffer.is_meta else buffer.clone()
        deliver = functools.partial(receiver.deliver, self.rank, nbytes, data)
        self.world.fabric.send(self.rank, dst, nbytes, end, deliver)
        self._now_ns = end
        self.num_steps += 1
        self.bytes_sent += nbytes
        self.log.add("sync", "send", start, end)

    def _new_receiver(self, rank: int) -> VirtualRuntime:
        check_peer(self.rank, rank, self.world_size)
        receiver = self._receivers[rank] = self.world.runtimes[rank]
        receiver.know(self.rank)
        return receiver

    def know(self, src: int) -> deque[Arrival]:
        """A place for messages of that device."""
        check_peer(self.rank, src, self.world_size)
        return self._inbox.setdefault(src, deque())

    def _finds_asleep(self, receiver: VirtualRuntime, time_ns: int) -> bool:
        """Whether the receiver has waited for a message long enough to have gone to sleep."""
        if time_ns - receiver.now() <= _ASLEEP_NS:  # where it waits, it does so since then
            return False
        self.catch_up()
        return receiver.waiting_for is not None and time_ns - receiver.now() > _ASLEEP_NS

    def deliver(self, src: int, nbytes: int, data: torch.Tensor | None, time_ns: int) -> None:
        """A message of `src` is here from that time on. Called by the scheduler."""
        self._inbox[src].append((time_ns, nbytes, data))
        if self.waiting_for == src:
            self.waiting_for = None
            assert self.greenlet is not None
            self.greenlet.switch()

    def recv(self, src: int, out: torch.Tensor) -> None:
        check_message(out)
        start = self._now_ns + self._next.step_ns
        self._next = self._usual
        inbox = self._inbox.get(src)
        if inbox is None:
            inbox = self.know(src)
        self.num_steps += 1
        if not inbox:
            self.num_steps += 1
            self.waiting_for = src
            self._scheduler.wait()
        arrival_ns, nbytes, data = inbox.popleft()
        check_size(src, nbytes, out.nbytes)
        self.bytes_received += nbytes
        if data is not None:
            out.copy_(data.view(out.shape))
        here = arrival_ns if arrival_ns > start else start
        end = here + self._receive_ns + round(nbytes * self._ns_per_received_byte)
        self._now_ns = end
        self.log.add("sync", "recv", start, end)

    def compute(self, key: Key, fn: Callable[[], T]) -> T:
        disk, begin = self._disk, self._now_ns
        if begin - self._computed_ns >= _LONG_WAIT_NS:
            self._idle_ns, self._warm_ns = begin - self._computed_ns, 0
        start = begin + self._next.step_ns
        if self._just_read_bytes:
            self._idle_ns = 0  # that wait counts in what it takes longer
        idle_ns = self._idle_ns if self._warm_ns < _COLD_NS else 0
        result, ns = self._costs.run(key, fn, self.profile, idle_ns)
        if self._just_read_bytes:
            ns += self._streamed_ns(key)
        disk.computing(begin, +1)
        computed = start + ns
        if self.world.memory is not None:
            self._now_ns = start
            self.catch_up()
            self.world.memory.compute(ns, functools.partial(self._stretch, key))
            computed = self._scheduler.now_ns
        end = max(computed + self._faults_ns, self._paged_in_ns)
        disk.computing(end, -1)
        self._go_on_to(end)
        self._faults_ns = 0
        self._warm_ns += computed - start
        self._computed_ns = end
        self._next = self._swept if ns >= _SWEEPS_NS else self._usual
        self.log.add(kind_of(key), str(key[0]), start, end)
        return result

    def _streamed_ns(self, key: Key) -> int:
        """What it takes longer with what was just read, the wait for that included."""
        touched = self._touched_bytes.get(key)
        if touched is None:
            touched = sum(operator.nbytes for operator in self._costs.work(key))
            self._touched_bytes[key] = touched
        nbytes, self._just_read_bytes = min(touched, self._just_read_bytes), 0
        return self.profile.streamed_ns + round(nbytes * self.profile.ns_per_streamed_byte)

    def _stretch(self, key: Key, num_sharing: int) -> float:
        """How much longer a computation takes while so many devices compute from one memory."""
        named = (key, num_sharing)
        found = self._stretches.get(named)
        if found is None:
            work = self._costs.work(key)
            alone_ns = max(1, work_ns(self.profile, work))
            found = work_ns(self.profile, work, num_sharing) / alone_ns
            self._stretches[named] = found
        return found

    def alloc(self, kind: str, nbytes: int) -> torch.Tensor:
        """As a device has it, in huge pages: in small ones products took a fifth longer."""
        self.hold(kind, nbytes)
        room = torch.empty(nbytes, dtype=torch.uint8)
        return room if room.is_meta else torch.from_numpy(anonymous_area(nbytes))

    def hold(self, kind: str, nbytes: int) -> None:
        self.ledger_bytes[kind] += nbytes
        total = sum(self.ledger_bytes.values())
        if total > self.profile.memory_bytes:
            parts = ", ".join(f"{k} {v / 1e9:.3g}" for k, v in self.ledger_bytes.items())
            raise OutOfMemory(
                f"needs {total / 1e9:.4g} GB ({parts}), but {self.profile.name} has "
                f"{self.profile.memory_gb:g} GB"
            )

    def read(self, block: BlockFile, out: torch.Tensor) -> TimedRead:
        start = self._now_ns
        note = functools.partial(self.log.add, "read", block.key, start)
        asked = self._disk.read(start, block.nbytes, self.rank, note)  # it begins at once
        self.sleep(self._next.asking_ns + round(block.nbytes * self._ns_per_asked_byte))
        self._next = self._usual
        self.log.add("load_wait", "request", start, self._now_ns)
        self.bytes_read += block.nbytes
        return TimedRead(self, asked, _read_now(block, out))

    def await_read(self, read: DiskRead) -> None:
        """Until its last byte is there."""
        self._go_on_to(self._disk.wait(self._now_ns, read))

    def map(self, block: BlockFile, nbytes: int, *, anew: bool = False) -> torch.Tensor:
        """The next computation lasts at least until the disk has given the missing pages.

        They come in the order in which it touches them, so that it goes on meanwhile. What paging
        them in takes besides, and the faults of a new mapping, comes on top of computing.
        """
        room = self.profile.memory_bytes - sum(self.ledger_bytes.values())
        now = self._now_ns
        self._faults_ns += round(nbytes * FAULT_NS_PER_BYTE) if anew else 0
        file = f"{block.path} {block.data_offset}"
        missing = self._page_cache.touch(file, nbytes, room)
        if missing:
            ahead = READ_AHEAD_BYTES if anew else ADVISED_BYTES
            self._paged_in_ns = self._disk.stream(now, missing, ahead, READS_IN_FLIGHT)
            self._faults_ns += round(missing * self.profile.ns_per_paged_byte)
            self.bytes_read += missing
            self.log.add("read", block.key, now, self._paged_in_ns)
        data = self._mapped.get(file)
        if data is None:
            data = self._mapped[file] = _map_now(block)
        return data

    def waiting(self, handle: ReadHandle, key: str) -> None:
        start = self._now_ns
        handle.wait()
        if self._is_slow_when_streamed:
            assert isinstance(handle, TimedRead)
            self._just_read_bytes += handle.read.nbytes
        self.log.add("load_wait", key, start, self._now_ns)


def _read_now(block: BlockFile, out: torch.Tensor) -> BlockReadError | None:
    """The bytes at once, if there are any; their time is the disk's matter, an error the wait's."""
    if out.is_meta:
        return None
    try:
        read_file(block.extent, out.numpy())
    except BlockReadError as error:
        return error
    return None


def _map_now(block: BlockFile) -> torch.Tensor:
    data = torch.empty(block.nbytes, dtype=torch.uint8)
    return data if data.is_meta else torch.from_numpy(map_file(block.extent))
