"""Somebody in the network who tries every port that the system chooses, with all sorts of words.

`python -m tests.cluster_demo.scanner ADDRESS...` goes on until it is ended; each connection is held
for as long as the other side lets it. At its end it prints how many were taken, and what came back.
"""

from __future__ import annotations

import itertools
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PROBES = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack("<4sI32s", b"TPI1", 1, bytes(32)) + bytes(32),  # the right form, no secret
    b"\x16\x03\x01\x02\x00\x01",  # as TLS begins
)
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_MOST_HELD = 400
_CONNECT_S = 0.05


def ports() -> range:
    first, last = map(int, _PORTS.read_text().split()) if _PORTS.is_file() else (32768, 60999)
    return range(first, last + 1)


def tried(addresses: Sequence[str]) -> Iterator[bytes]:
    """What each connection has been answered, for ever."""
    probes, held = itertools.cycle(PROBES), list[socket.socket]()
    for _ in itertools.count():
        for address, port in itertools.product(addresses, ports()):
            connection = socket.socket()
            connection.settimeout(_CONNECT_S)
            try:
                connection.connect((address, port))
                connection.sendall(next(probes))
                yield connection.recv(4096)
            except TimeoutError:
                yield b""
            except OSError:
                connection.close()
                continue
            held.append(connection)
            if len(held) > _MOST_HELD:
                held.pop(0).close()


def main() -> int:
    answers: list[bytes] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for answer in tried(sys.argv[1:]):
            answers.append(answer)
    finally:
        print(len(answers), max((len(answer) for answer in answers), default=0), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
