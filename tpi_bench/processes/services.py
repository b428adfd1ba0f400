"""What a device serves to programs of others: a real program's own socket, beside our messages.

`device.py` starts it before the device says that it listens. With it comes an echo, through which
the master measures the way there as that program's bytes take it (`relay.py` emulates links).
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Sequence

from tpi_bench.contract.network import NetworkConfig

_HOST = "127.0.0.1"
_START_S = 30.0
_PING = b"12345678"


class Services:
    """Ports of this device: the echo's, then the program's; none where it serves nothing.

    `serve(port)` listens there and does not return. Raises RuntimeError when it does.
    """

    def __init__(self, serve: Callable[[int], None] | None) -> None:
        self.ports: list[int] = []
        if serve is None:
            return
        echo = socket.create_server((_HOST, 0))
        self._start("echo", functools.partial(_echo, echo))
        port = _free_port()
        server = self._start("server", functools.partial(serve, port))
        deadline_s = time.monotonic() + _START_S
        while not _listens(port):
            if not server.is_alive() or time.monotonic() > deadline_s:
                raise RuntimeError(f"the program that was to serve on port {port} does not listen")
            time.sleep(0.005)
        self.ports = [echo.getsockname()[1], port]

    def _start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread


def addresses(services: Sequence[Sequence[int]]) -> list[str]:
    """Where each rank's program is reached; empty for a rank without one."""
    return [f"{_HOST}:{ports[1]}" if ports else "" for ports in services]


def round_trips_ns(services: Sequence[Sequence[int]], network: NetworkConfig) -> list[int]:
    """Times of 8 bytes to each device's echo and back, as `engine/rank.py` does with messages."""
    workers = [ports[0] for ports in services if ports]
    budget = 100_000_000 // max(1, 2 * network.one_way_ns * len(workers))
    count = max(3, min(20, budget))
    times = []
    for port in workers:
        with socket.create_connection((_HOST, port), timeout=network.timeout_s) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for attempt in range(count):
                start_ns = time.monotonic_ns()
                connection.sendall(_PING)
                _receive(connection, len(_PING))
                if attempt:
                    times.append(time.monotonic_ns() - start_ns)
    return times


def _echo(listener: socket.socket) -> None:
    """Send back what comes, to one after another."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)


def _receive(connection: socket.socket, nbytes: int) -> None:
    while nbytes:
        got = len(connection.recv(nbytes))
        if not got:
            raise ConnectionError("the echo of a device has closed its connection")
        nbytes -= got


def _free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server((_HOST, 0)) as found:
        return int(found.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1.0):
        return True
    return False
