"""Somebody in the network who finds every port as soon as it is open, and says all sorts of things.

`python -m tests.cluster_demo.scanner ADDRESS=PID...` goes on until it is ended: PID is any process
of the machine that has the address, whose kernel tells which ports are open there. What was open
before it began is Ray's, and left alone. In the end it prints to how many connections it was let
in, and how long the longest answer was.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import struct
import sys
import time
from pathlib import Path

PROBES = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack("<4sI32s", b"TPI1", 1, bytes(32)) + bytes(32),  # the right form, no secret
    b"\x16\x03\x01\x02\x00\x01",  # as TLS begins
)
_EACH = 8  # connections to a port
_LISTENS = "0A"
_LOOK_S = 0.002
_CONNECT_S = 0.2


def open_ports(address: str, pid: str) -> set[tuple[str, int]]:
    """Where somebody listens at the address."""
    packed = socket.inet_aton(address)
    local = f"{int.from_bytes(packed, sys.byteorder):08X}"
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, place, _, state, *_ = line.split()
        host, _, port = place.partition(":")
        if host == local and state == _LISTENS:
            found.add((address, int(port, 16)))
    return found


class Stranger:
    """`num_in` connections were taken; `longest` is the longest answer to any."""

    def __init__(self) -> None:
        self.num_in, self.longest = 0, 0
        self._probes = itertools.cycle(PROBES)
        self._held: list[socket.socket] = []

    def try_port(self, place: tuple[str, int]) -> None:
        """What is let in stays for as long as the other side lets it."""
        for probe in itertools.islice(self._probes, _EACH):
            with contextlib.suppress(OSError):
                self._held.append(socket.create_connection(place, timeout=_CONNECT_S))
                self.num_in += 1
                self._held[-1].sendall(probe)
                self._held[-1].setblocking(False)

    def hear(self) -> None:
        for connection in self._held:
            with contextlib.suppress(OSError):
                self.longest = max(self.longest, len(connection.recv(4096, socket.MSG_PEEK)))


def main() -> int:
    machines = [text.split("=") for text in sys.argv[1:]]
    stranger = Stranger()
    known = set().union(*(open_ports(*machine) for machine in machines))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("begun", flush=True)
    try:
        while True:
            for place in set().union(*(open_ports(*machine) for machine in machines)) - known:
                known.add(place)
                stranger.try_port(place)
            stranger.hear()
            time.sleep(_LOOK_S)
    finally:
        print(stranger.num_in, stranger.longest, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
