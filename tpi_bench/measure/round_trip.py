"""What a message there and back costs on this host at least: plain sockets between two processes.

Nothing of this program's own links is in it. `probe.py` measures it beside memory and disk; an
allreduce of two devices is held against it.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Iterable

from tpi_bench.host.machine import available_cpus

_WARM_UP = 20
_COUNT = 200


def raw_round_trip_s(nbytes: int) -> float:
    """Median of messages of `nbytes` over loopback TCP to another process and back.

    Each process has a core of its own, as devices that compute at the same time have: on one core
    the kernel would hand over in a quarter of the time.
    """
    cpus = available_cpus()
    ours, theirs = _connected()
    child = os.fork()
    if not child:
        ours.close()
        _run_on(cpus[-1:])
        _echo(theirs, nbytes)
        os._exit(0)
    theirs.close()
    _run_on(cpus[:1])
    message = memoryview(bytearray(nbytes))
    times_s = []
    with ours:
        for _ in range(_WARM_UP + _COUNT):
            start = time.perf_counter()
            ours.sendall(message)
            _receive(ours, message)
            times_s.append(time.perf_counter() - start)
    os.waitpid(child, 0)
    _run_on(cpus)
    return statistics.median(times_s[_WARM_UP:])


def _run_on(cpus: Iterable[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for connection in (ours, theirs):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def _echo(connection: socket.socket, nbytes: int) -> None:
    """Send back what comes, until the other side closes."""
    message = memoryview(bytearray(nbytes))
    while _receive(connection, message):
        connection.sendall(message)


def _receive(connection: socket.socket, message: memoryview) -> bool:
    """Fill `message`; False at the end of the connection."""
    begin = 0
    while begin < message.nbytes:
        got = connection.recv_into(message[begin:])
        if not got:
            return False
        begin += got
    return True
