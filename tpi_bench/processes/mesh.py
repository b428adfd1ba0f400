"""Messages between devices: raw framed buffers over the connections that `handshake.py` proved.

A frame is a 32-byte header (magic, sequence number, length, and the times at which an emulated link
delivers its first and last bit) and the raw bytes, received in place. Sending never waits for the
receiver: what the kernel does not take is queued for a thread. Receiving is one system call that
sleeps; a device whose core nobody else needs asks again and again for a moment first, which saves
being woken up. Link emulation needs no thread: the sender computes when the message arrives, the
receiver sleeps until then.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import sys
import threading
import time
from collections import deque

import numpy as np

from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.runtime import DeviceLost, check_size
from tpi_bench.host.cores import on_any_core
from tpi_bench.processes.links import DownLink, Flight, UpLink
from tpi_bench.processes.tls import TlsSocket

_FRAME = struct.Struct("<4sIQqq")
_MAGIC = b"TPI1"
_MAX_FRAME_BYTES = 1 << 32
_JOIN_BYTES = (1 << 14) - _FRAME.size
# A sleep ends tens of microseconds late even with the timer slack turned off: be woken this much
# earlier and yield until the time has come, less what the caller needs to take notice. So a message
# is never used early.
_WAKE_EARLY_NS = 60_000
_NOTICE_NS = 15_000
_PR_SET_TIMERSLACK = 29
# Longer than peers that compute the same are apart, far shorter than a link or a disk takes.
_SPIN_NS = 200_000
_LOOK_AT_CLOCK_S = 1.0  # while waiting for a silent peer
# Under a launcher that tells a hanging device from a busy one, a silent peer is given this many
# times the timeout before a device gives up by itself.
_WATCHED_PATIENCE = 1000


def precise_sleeps() -> None:
    """Ask Linux for exact timers in this thread (the default adds up to 50 microseconds)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def sleep_until(deadline_ns: int) -> None:
    """Return as soon as possible after `time.monotonic_ns()` has reached `deadline_ns`."""
    remaining = deadline_ns - time.monotonic_ns() - _WAKE_EARLY_NS
    if remaining > 0:
        time.sleep(remaining / 1e9)
    while time.monotonic_ns() < deadline_ns - _NOTICE_NS:
        time.sleep(0)


class Mesh:
    """Frames to and from every peer, through emulated links where the network asks for them.

    `waiting_for` is the peer whose message is awaited right now. A peer that stays silent for
    `network.timeout_s` is lost, unless a launcher watches over the devices (`is_watched`). With
    `spins`, waiting keeps this thread's core busy for a moment before it sleeps.
    """

    def __init__(
        self,
        rank: int,
        sockets: dict[int, socket.socket],
        network: NetworkConfig,
        is_watched: bool = False,
        spins: bool = False,
    ) -> None:
        self._network = network
        self._up = UpLink(network, rank)
        self._down = DownLink(network)
        self._outboxes = {peer: _Outbox(connection) for peer, connection in sockets.items()}
        patience = _WATCHED_PATIENCE if is_watched else 1
        self._inboxes = {
            peer: _Inbox(peer, connection, network.timeout_s, patience, _SPIN_NS * spins)
            for peer, connection in sockets.items()
        }
        self._arrivals: dict[int, int] = {}  # frames whose place on the down-link is already known
        self.waiting_for: int | None = None
        precise_sleeps()

    def send(self, dst: int, data: np.ndarray) -> None:
        """Frame `data` (contiguous uint8) for `dst`. Copies only what the kernel does not take."""
        flight = Flight(0, 0)
        if self._network.is_emulated:
            flight = self._up.depart(time.monotonic_ns(), dst, data.nbytes)
        try:
            self._outboxes[dst].send(data.data, flight)
        except OSError as error:
            raise DeviceLost(dst, f"closed its connection ({error.strerror})") from error

    def recv(self, src: int, out: np.ndarray) -> None:
        """The next frame from `src` into `out` (contiguous uint8 of exactly the frame's length)."""
        self.waiting_for = src
        flight = self._inboxes[src].receive(out.data)
        if self._network.is_emulated:
            sleep_until(self._arrival(src, flight, out.nbytes))
        self.waiting_for = None

    def close(self) -> None:
        """Send what is still queued, then close."""
        for outbox in self._outboxes.values():
            outbox.flush()
        for inbox in self._inboxes.values():
            inbox.close()

    def _arrival(self, src: int, flight: Flight, nbytes: int) -> int:
        """When this frame has passed the down-link, after all that reached the link before it.

        Only with a finite rate do frames of different peers get in each other's way; then the first
        waiting frame of every other peer is looked at once this one's first bit is due.
        """
        if src in self._arrivals:
            return self._arrivals.pop(src)
        if self._network.bandwidth_mbps:
            sleep_until(flight.first_ns)
            earlier = []
            for peer in self._inboxes.keys() - self._arrivals.keys() - {src}:
                frame = self._inboxes[peer].peek()
                if frame and frame[0].first_ns < flight.first_ns:
                    earlier.append((frame[0].first_ns, peer, frame))
            for _, peer, (other, other_nbytes) in sorted(earlier, key=lambda item: item[:2]):
                self._arrivals[peer] = self._down.arrive(other, other_nbytes)
        return self._down.arrive(flight, nbytes)


class _Inbox:
    """Frames from one peer, received in place. Raises DeviceLost, or ValueError for one of another
    size.
    """

    def __init__(
        self,
        peer: int,
        connection: socket.socket,
        timeout_s: float,
        patience: float,
        spin_ns: int,
    ) -> None:
        self._peer = peer
        self._connection = connection
        self._timeout_s = timeout_s
        self._patience_ns = round(timeout_s * patience * 1e9)
        self._spin_ns = spin_ns
        self._number = 0  # of the next frame
        self._header = memoryview(bytearray(_FRAME.size))
        look_us = max(1, round(min(_LOOK_AT_CLOCK_S, timeout_s) * 1e6))
        timeval = struct.pack("@ll", *divmod(look_us, 1_000_000))
        connection.setblocking(not isinstance(connection, TlsSocket))  # which waits by itself
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)

    def receive(self, out: memoryview) -> Flight:
        """Wait for the next frame's bytes; when they travelled."""
        parts = [self._header, out]
        while parts:
            if len(parts) == 1:  # of a frame that is too short, no more will come
                self._check_header(out.nbytes)
            got = self._take(parts)
            if got == 0:
                raise self._lost("closed its connection")
            while parts and got >= parts[0].nbytes:
                got -= parts.pop(0).nbytes
            if got:
                parts[0] = parts[0][got:]
        flight = self._check_header(out.nbytes)
        self._number = (self._number + 1) & 0xFFFFFFFF
        return flight

    def _take(self, parts: list[memoryview]) -> int:
        """Into the parts what there is, as soon as there is some; how many bytes."""
        start_ns = time.monotonic_ns()
        flags = socket.MSG_DONTWAIT if self._spin_ns else 0
        while True:
            try:
                return self._connection.recvmsg_into(parts, 0, flags)[0]
            except BlockingIOError:
                waited_ns = time.monotonic_ns() - start_ns
                if waited_ns > self._patience_ns:
                    text = f"sent nothing for {self._timeout_s:g} s (network.timeout_s)"
                    raise self._lost(text) from None
                if waited_ns > self._spin_ns:
                    flags = 0
            except OSError as error:
                raise self._lost(f"closed its connection ({error.strerror})") from error

    def peek(self) -> tuple[Flight, int] | None:
        """The next frame's times and length, if it is here."""
        header = bytearray(_FRAME.size)
        try:
            got = self._connection.recv_into(header, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return None
        if got < _FRAME.size:
            return None
        _, _, length, first_ns, last_ns = _FRAME.unpack(header)
        return Flight(first_ns, last_ns), length

    def close(self) -> None:
        self._connection.close()

    def _check_header(self, nbytes: int) -> Flight:
        magic, number, length, first_ns, last_ns = _FRAME.unpack(self._header)
        if (magic, number) != (_MAGIC, self._number) or length > _MAX_FRAME_BYTES:
            raise self._lost(
                f"sent a frame of {length} bytes, number {number}, where number {self._number} "
                "was due"
            )
        check_size(self._peer, length, nbytes)
        return Flight(first_ns, last_ns)

    def _lost(self, reason: str) -> DeviceLost:
        return DeviceLost(self._peer, reason)


class _Outbox:
    """Frames on their way to one peer. Sending never waits for the receiver.

    What the kernel does not take at once (beyond some megabytes) is copied and sent by a
    thread that lives only while there is some.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # Under TLS a frame that fits is one record, and so one system call.
        self._join_bytes = _JOIN_BYTES if isinstance(connection, TlsSocket) else 0
        self._number = 0  # of the next frame
        self._queue: deque[memoryview] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._on_any_core = on_any_core()

    def send(self, data: memoryview, flight: Flight) -> None:
        """Send a frame after all before it. Raises OSError if the peer is gone."""
        header = _FRAME.pack(_MAGIC, self._number, data.nbytes, flight.first_ns, flight.last_ns)
        self._number = (self._number + 1) & 0xFFFFFFFF
        pieces = [memoryview(header), data]
        if data.nbytes <= self._join_bytes:
            pieces = [memoryview(header + data)]
        with self._lock:
            taken = 0 if self._thread else self._try_send(pieces)
            for piece in pieces:
                if taken < piece.nbytes:
                    self._queue.append(memoryview(bytes(piece[taken:])))
                taken = max(0, taken - piece.nbytes)
            if self._queue and self._thread is None:
                self._thread = threading.Thread(target=self._drain, name="outbox", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Give what is queued a second to leave."""
        thread = self._thread
        if thread is not None:
            thread.join(1.0)

    def _drain(self) -> None:
        self._on_any_core()
        poll = select.poll()
        poll.register(self._connection, select.POLLOUT)
        while True:
            poll.poll()
            with self._lock:
                try:
                    taken = self._try_send([self._queue[0]])
                except OSError:  # the next send or receive meets the same error and reports it
                    self._queue.clear()
                    taken = 0
                if self._queue and taken < self._queue[0].nbytes:
                    self._queue[0] = self._queue[0][taken:]
                elif self._queue:
                    self._queue.popleft()
                if not self._queue:
                    self._thread = None
                    return

    def _try_send(self, pieces: list[memoryview]) -> int:
        try:
            return self._connection.sendmsg(pieces, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
