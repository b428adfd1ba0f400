"""Emulated links for programs that have sockets of their own: relays between them, one a device.

A real program's bytes cannot carry a header with the time of their arrival, as frames of `mesh.py`
do. So each device has a relay, a process beside it that stands for its network card: the master's
program connects to its own relay, that to the relay of the other device, and that to the program
there. A piece of the stream leaves by the up-link of the relay that reads it, travels as a frame
with its times, and is handed on when the other relay's down-link has passed it: `links.py` computes
both, as for messages. What the relays take themselves is part of that time, not on top of it.

`launcher.py` starts them where links are emulated and a device serves something (`services.py`).
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import json
import select
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

from tpi_bench.contract.network import NetworkConfig
from tpi_bench.host.fork import InterpreterLost, start_process
from tpi_bench.processes.links import DownLink, Flight, UpLink
from tpi_bench.processes.mesh import precise_sleeps

_HOST = "127.0.0.1"
_FRAME = struct.Struct("<Iqq")  # bytes that follow (0: the end), when the first and last arrive
_PIECE_BYTES = 1 << 16
_MOST_QUEUED = 32 << 20  # bytes under way on one connection, then the sender has to wait
_START_S = 20.0
_WAKE_EARLY_NS = 60_000  # a sleep ends late: be awake before, as `mesh.py`
_NOTICE_NS = 20_000  # what handing on takes, and the program that is woken
_Act = Callable[[], None]


class Relays:
    """The relays of a job; `ports[rank]` are where the master's program reaches `services[rank]`.

    Raises InterpreterLost, or RuntimeError where one does not start.
    """

    def __init__(
        self,
        network: NetworkConfig,
        services: Sequence[Sequence[int]],
        context: ForkServerContext,
    ) -> None:
        self._network, self._context = network, context
        self._processes: list[tuple[object, Connection]] = []
        self.ports: list[list[int]] = []
        try:
            inner = [
                self._start(rank, [(0, port) for port in ports]) if ports else []
                for rank, ports in enumerate(services)
            ]
            ways = [(rank, port) for rank, ports in enumerate(inner) for port in ports]
            doors = iter(self._start(0, ways))
            self.ports = [list(itertools.islice(doors, len(ports))) for ports in inner]
        except BaseException:
            self.end()
            raise

    def _start(self, rank: int, ways: list[tuple[int, int]]) -> list[int]:
        """A door for each way (a peer and a port); their ports."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_relay_main,
            args=(rank, self._network, ways, theirs),
            name=f"relay of rank {rank}",
            daemon=True,
        )
        try:
            start_process(process)
        except InterpreterLost:
            ours.close()
            raise
        finally:
            theirs.close()
        self._processes.append((process, ours))
        if not ours.poll(_START_S):
            raise RuntimeError(f"the relay of rank {rank} did not start in time")
        try:
            return list(json.loads(ours.recv_bytes()))
        except EOFError as error:
            raise RuntimeError(f"the relay of rank {rank} has ended") from error

    def end(self) -> None:
        for process, connection in self._processes:
            connection.close()
            process.kill()  # type: ignore[attr-defined]
            process.join()  # type: ignore[attr-defined]
        self._processes = []


def _relay_main(
    rank: int, network: NetworkConfig, ways: list[tuple[int, int]], launcher: Connection
) -> None:
    """Entry point of a relay process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    relay = Relay(rank, network)
    doors = [relay.open_door(peer, port) for peer, port in ways]
    launcher.send_bytes(json.dumps(doors).encode())
    relay.run(launcher.fileno())


class Relay:
    """The network card of one device: all its streams pass one up-link and one down-link.

    A stream has two ends here: the program's, plain bytes, and the other relay's, frames.
    """

    def __init__(self, rank: int, network: NetworkConfig) -> None:
        self._is_master = rank == 0
        self._up, self._down = UpLink(network, rank), DownLink(network)
        self._doors: dict[socket.socket, tuple[int, int]] = {}
        self._streams: list[_Stream] = []
        # When, a number that keeps the order, the stream, and its bytes (none: its end).
        self._due: list[tuple[int, int, _Stream, bytes]] = []
        self._numbers = itertools.count()
        self._has_ended = False

    def open_door(self, peer: int, port: int) -> int:
        """Take connections that go on to `port`, to the relay or program there; where."""
        door = socket.create_server((_HOST, 0), backlog=16)
        door.setblocking(False)
        self._doors[door] = (peer, port)
        return int(door.getsockname()[1])

    def run(self, launcher: int | None = None) -> None:
        """Until the launcher is gone, whose pipe is `launcher`."""
        precise_sleeps()
        while not self._has_ended:
            now_ns = time.monotonic_ns()
            self._hand_on(now_ns)
            readers: dict[socket.socket | int, _Act] = {
                door: functools.partial(self._let_in, door) for door in self._doors
            }
            for stream in self._streams:
                readers |= stream.readable()
            writers = {way.socket: way.flush for s in self._streams for way in s.waiting()}
            if launcher is not None:
                readers[launcher] = self._end
            ready, writable, _ = select.select([*readers], [*writers], [], self._idle_s(now_ns))
            for act in [*map(writers.__getitem__, writable), *map(readers.__getitem__, ready)]:
                act()
            self._streams = [stream for stream in self._streams if not stream.is_over]

    def _end(self) -> None:
        self._has_ended = True

    def _idle_s(self, now_ns: int) -> float | None:
        """How long nothing is to be handed on; 0 where it is not worth to sleep."""
        if not self._due:
            return None
        return max(0, self._due[0][0] - now_ns - _WAKE_EARLY_NS) / 1e9

    def _let_in(self, door: socket.socket) -> None:
        try:
            comes, _ = door.accept()
        except (BlockingIOError, ConnectionError):  # it has gone again
            return
        peer, port = self._doors[door]
        try:
            goes = socket.create_connection((_HOST, port), timeout=_START_S)
        except OSError:
            comes.close()
            return
        program, other = (comes, goes) if self._is_master else (goes, comes)
        take = functools.partial(self._note, peer)
        self._streams.append(_Stream(program, other, functools.partial(self._depart, peer), take))

    def _depart(self, peer: int, nbytes: int) -> Flight:
        return self._up.depart(time.monotonic_ns(), peer, nbytes)

    def _note(self, peer: int, stream: _Stream, flight: Flight, data: bytes) -> None:
        """A frame is here; its bytes are due once they have passed the down-link."""
        when_ns = self._down.arrive(flight, len(data))
        heapq.heappush(self._due, (when_ns, next(self._numbers), stream, data))

    def _hand_on(self, now_ns: int) -> None:
        while self._due and self._due[0][0] <= now_ns + _NOTICE_NS:
            _, _, stream, data = heapq.heappop(self._due)
            stream.hand_on(data)


class _Stream:
    """One connection of the real program, both directions."""

    def __init__(
        self,
        program: socket.socket,
        other: socket.socket,
        depart: Callable[[int], Flight],
        note: Callable[[_Stream, Flight, bytes], None],
    ) -> None:
        for each in (program, other):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._program, self._other = _Way(program), _Way(other)
        self._depart, self._take = depart, note
        self._received = bytearray()  # of frames
        self._num_due = 0  # bytes that are here and not yet handed on
        self._reads_program = self._reads_other = True

    def readable(self) -> dict[socket.socket | int, _Act]:
        """What may be read now, and how."""
        found: dict[socket.socket | int, _Act] = {}
        if self._reads_program and self._other.num_queued < _MOST_QUEUED:
            found[self._program.socket] = self._read_program
        if self._reads_other and self._num_due + self._program.num_queued < _MOST_QUEUED:
            found[self._other.socket] = self._read_other
        return found

    def waiting(self) -> list[_Way]:
        """Ways with something to send that the kernel did not take."""
        return [way for way in (self._program, self._other) if way.num_queued]

    @property
    def is_over(self) -> bool:
        """Both ends have said their last; whoever asks gets the sockets closed."""
        is_open = self._reads_program or self._reads_other or self._num_due
        if is_open or self._program.num_queued or self._other.num_queued:
            return False
        self._program.socket.close()
        self._other.socket.close()
        return True

    def hand_on(self, data: bytes) -> None:
        self._num_due -= max(1, len(data))
        if data:
            self._program.push(data)
        else:
            self._program.finish()

    def _read_program(self) -> None:
        data = _received(self._program.socket, _PIECE_BYTES)
        if data is None:
            return
        flight = self._depart(len(data))
        self._other.push(_FRAME.pack(len(data), flight.first_ns, flight.last_ns) + data)
        self._reads_program = bool(data)

    def _read_other(self) -> None:
        data = _received(self._other.socket, _PIECE_BYTES + _FRAME.size)
        if data is None:
            return
        if not data:  # the other relay has gone: so has the stream
            self._reads_other = self._reads_program = False
            self._program.finish()
            return
        self._received += data
        while len(self._received) >= _FRAME.size:
            length, first_ns, last_ns = _FRAME.unpack_from(self._received)
            if len(self._received) < _FRAME.size + length:
                return
            piece = bytes(self._received[_FRAME.size : _FRAME.size + length])
            del self._received[: _FRAME.size + length]
            self._num_due += max(1, length)
            self._take(self, Flight(first_ns, last_ns), piece)
            self._reads_other = bool(length)


class _Way:
    """Bytes to one socket, as fast as it takes them."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.num_queued = 0
        self._queue: deque[memoryview] = deque()
        self._is_last = False

    def push(self, data: bytes) -> None:
        self._queue.append(memoryview(data))
        self.num_queued += len(data)
        self.flush()

    def finish(self) -> None:
        """Nothing comes behind what is queued."""
        self._is_last = True
        self.flush()

    def flush(self) -> None:
        try:
            while self._queue:
                sent = self.socket.send(self._queue[0])
                self.num_queued -= sent
                self._queue[0] = self._queue[0][sent:]
                if not self._queue[0]:
                    self._queue.popleft()
        except BlockingIOError:
            return
        except OSError:  # whoever reads there has gone, and is missed where it matters
            self._queue.clear()
            self.num_queued = 0
        if self._is_last:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)


def _received(connection: socket.socket, most: int) -> bytes | None:
    """What there is; empty at the end, None where there is nothing yet."""
    try:
        return connection.recv(most)
    except BlockingIOError:
        return None
    except OSError:
        return b""
