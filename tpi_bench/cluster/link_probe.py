"""What the link between two nodes gives: round trips of an empty message, and bytes a second.

One side answers, the other asks, over a connection that is proved as those of devices are.
"""

from __future__ import annotations

import socket
import statistics
import struct
import time
from collections.abc import Sequence

from tpi_bench.contract.job import LinkReading
from tpi_bench.contract.runtime import DeviceLost
from tpi_bench.processes.handshake import Listener, call
from tpi_bench.processes.tls import Tls

_LENGTH = struct.Struct("<Q")
_PINGS = 20
_WAIT_S = 20.0
_FIRST_BYTES, _MOST_BYTES = 1 << 16, 1 << 26
_LONG_S = 0.05  # a transfer of so long tells the rate


def answer(listener: Listener, own: int, asker: int, secret: bytes, tls: Tls | None = None) -> None:
    """Send back what comes, and say when all of a longer message is there, until it closes."""
    deadline_ns = time.monotonic_ns() + round(_WAIT_S * 1e9)
    try:
        connection = listener.accept(own, {asker}, secret, deadline_ns, tls)[asker]
    except DeviceLost:  # who asked has been told
        return
    finally:
        listener.close()
    with connection:
        _set_up(connection)
        buffer = memoryview(bytearray(1 << 20))
        while head := _take(connection, _LENGTH.size):
            (nbytes,) = _LENGTH.unpack(head)
            while nbytes:
                got = connection.recv_into(buffer[: min(nbytes, len(buffer))])
                if not got:
                    return
                nbytes -= got
            connection.sendall(head)


def ask(
    own: int,
    other: int,
    place: tuple[str, int],
    own_host: str,
    secret: bytes,
    tls: Tls | None = None,
) -> LinkReading:
    """What the way there gives. Raises DeviceLost or OSError."""
    with call(own, other, place, secret, _WAIT_S, own_host, tls) as connection:
        _set_up(connection)
        trips_s = [_sent_s(connection, 0) for _ in range(1 + _PINGS)][1:]
        least_s = min(trips_s)
        nbytes, took_s = _FIRST_BYTES, _sent_s(connection, _FIRST_BYTES)
        while took_s < _LONG_S and nbytes < _MOST_BYTES:
            nbytes *= 4
            took_s = _sent_s(connection, nbytes)
    return LinkReading(
        src=own,
        dst=other,
        round_trip_s=statistics.median(trips_s),
        round_trip_min_s=least_s,
        bandwidth_mbps=nbytes * 8e-6 / max(1e-9, took_s - least_s),
    )


def pairs_of(hosts: Sequence[str]) -> list[tuple[int, int]]:
    """All ways between ranks of different hosts, in order."""
    count = range(len(hosts))
    return [(a, b) for a in count for b in count if hosts[a] != hosts[b]]


def _sent_s(connection: socket.socket, nbytes: int) -> float:
    """From the first byte of a message to the word that all of it is there."""
    data = memoryview(bytes(min(nbytes, 1 << 20)))
    start = time.perf_counter()
    connection.sendall(_LENGTH.pack(nbytes))
    while nbytes:
        nbytes -= connection.send(data[:nbytes])
    _take(connection, _LENGTH.size)
    return time.perf_counter() - start


def _take(connection: socket.socket, nbytes: int) -> bytes:
    """So many bytes; none where the other side has closed."""
    found = b""
    while len(found) < nbytes:
        piece = connection.recv(nbytes - len(found))
        if not piece:
            return b""
        found += piece
    return found


def _set_up(connection: socket.socket) -> None:
    connection.setblocking(True)
    connection.settimeout(_WAIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
