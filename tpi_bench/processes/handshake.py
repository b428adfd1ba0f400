"""How a device's connections are made and proved: a full mesh of TCP connections.

They run over loopback, or between the addresses of a job whose devices are on several machines.
Both sides prove that they know the run's secret (HMAC-SHA256 over the peers' nonces); anything else
that connects is refused and logged, and holds nobody up. With `tls.py` a proved connection goes
under TLS in the same way. `mesh.py` sends frames over the result.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import secrets
import select
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tpi_bench.contract.runtime import DeviceLost
from tpi_bench.processes.tls import Tls, TlsSocket

log = logging.getLogger(__name__)

_MAGIC = b"TPI1"
_HELLO = struct.Struct("<4sI32s")  # magic, rank, nonce
_PROOF_BYTES = 32
_HANDSHAKE_NS = 2_000_000_000
_MAX_GUESTS = 64
_LOOK_NS = 200_000_000  # between looks whether anybody is still to come
LOOPBACK = "127.0.0.1"
# Of a connection to another machine: one that says nothing is asked after so many seconds, and so
# many times, a second apart, before it counts as cut.
_SILENT_S, _ASKED = 2, 3


class Listener:
    """A server socket on an ephemeral port of one address, open only while connections form."""

    def __init__(self, host: str = LOOPBACK) -> None:
        self._socket = socket.create_server((host, 0), backlog=socket.SOMAXCONN)
        self._socket.setblocking(False)
        self._is_over = False
        self.port: int = self._socket.getsockname()[1]

    def accept(
        self,
        rank: int,
        peers: set[int],
        secret: bytes,
        deadline_ns: int,
        tls: Tls | None = None,
    ) -> dict[int, socket.socket]:
        """Connections from all of `peers`. Strangers are refused and hold nobody up."""
        found: dict[int, socket.socket] = {}
        with _Lobby(self._socket, rank, secret, tls) as lobby:
            while awaited := peers - found.keys():
                if self._is_over or time.monotonic_ns() > deadline_ns:
                    for connection in found.values():
                        connection.close()
                    raise DeviceLost(min(awaited), "did not connect in time")
                look_ns = min(deadline_ns, time.monotonic_ns() + _LOOK_NS)
                found |= lobby.proved(awaited, look_ns)
        return found

    def give_up(self) -> None:
        """From another thread: nobody else will come."""
        self._is_over = True

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True)
class _Guest:
    """A connection that has not proved yet who it is."""

    handshake: _Handshake
    address: tuple[str, int]
    deadline_ns: int


class _Lobby:
    """Where connections prove themselves side by side, so that nobody waits for a silent one.

    Each has two seconds, and when there are too many, the one that has said least has to go.
    """

    def __init__(self, door: socket.socket, rank: int, secret: bytes, tls: Tls | None) -> None:
        self._door, self._rank, self._secret, self._tls = door, rank, secret, tls
        self._guests: dict[int, _Guest] = {}  # by the connection's number, the oldest first
        self._selector = selectors.DefaultSelector()
        self._selector.register(door, selectors.EVENT_READ)

    def __enter__(self) -> _Lobby:
        return self

    def __exit__(self, *exc: object) -> None:
        for guest in [*self._guests.values()]:
            self._refuse(guest)
        self._selector.close()

    def proved(self, awaited: set[int], deadline_ns: int) -> dict[int, socket.socket]:
        """Wait for news, at most until the deadline; which of the awaited ranks have come in."""
        deadlines = [deadline_ns, *(guest.deadline_ns for guest in self._guests.values())]
        wait_s = max(0.0, (min(deadlines) - time.monotonic_ns()) / 1e9)
        found: dict[int, socket.socket] = {}
        for key, _ in self._selector.select(wait_s):
            if key.fileobj is self._door:
                self._let_in()
            elif guest := self._guests.get(key.fd):
                self._listen_to(guest, awaited, found)
        for guest in [*self._guests.values()]:
            if guest.deadline_ns < time.monotonic_ns():
                self._refuse(guest)
        return found

    def _let_in(self) -> None:
        try:
            connection, address = self._door.accept()
        except (BlockingIOError, ConnectionError):  # it has gone again
            return
        if len(self._guests) >= _MAX_GUESTS:
            self._refuse(min(self._guests.values(), key=lambda g: g.handshake.num_received))
        handshake = _Handshake(connection, self._rank, self._secret, self._tls, is_caller=False)
        deadline_ns = time.monotonic_ns() + _HANDSHAKE_NS
        self._guests[connection.fileno()] = _Guest(handshake, address, deadline_ns)
        self._selector.register(connection.fileno(), selectors.EVENT_READ)

    def _listen_to(self, guest: _Guest, awaited: set[int], found: dict[int, socket.socket]) -> None:
        try:
            peer = guest.handshake.advance()
        except OSError:
            self._refuse(guest)
            return
        if peer in awaited - found.keys():
            found[peer] = self._forget(guest)
        elif peer is not None:
            self._refuse(guest)

    def _refuse(self, guest: _Guest) -> None:
        log.warning(
            "rank %d refused a connection from %s:%d: no valid proof", self._rank, *guest.address
        )
        self._forget(guest).close()

    def _forget(self, guest: _Guest) -> socket.socket:
        connection = guest.handshake.connection
        self._selector.unregister(connection.fileno())
        del self._guests[connection.fileno()]
        return connection


def connect_mesh(
    rank: int,
    ports: list[int],
    listener: Listener,
    secret: bytes,
    timeout_s: float,
    hosts: Sequence[str] = (),
    tls: Tls | None = None,
) -> dict[int, socket.socket]:
    """One connection to every other rank: calls go to lower ranks, higher ranks call here.

    `hosts` are the addresses of ranks on several machines. Each connection then runs between the
    addresses of its two ranks, or there is none.
    """
    deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
    places = list(zip(hosts or [LOOPBACK] * len(ports), ports, strict=True))
    own = hosts[rank] if hosts else None
    sockets = {
        peer: call(rank, peer, places[peer], secret, timeout_s, own, tls) for peer in range(rank)
    }
    sockets |= listener.accept(rank, set(range(rank + 1, len(ports))), secret, deadline_ns, tls)
    listener.close()
    for peer, connection in sockets.items():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hosts:
            notice_cuts(connection)
            _check_address(peer, connection, hosts[peer])
    return sockets


def notice_cuts(connection: socket.socket) -> None:
    """Of a machine that is gone or cut off the kernel tells within seconds, whoever is to speak."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENT_S),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", _ASKED),
        ("TCP_USER_TIMEOUT", 1000 * (_SILENT_S + _ASKED)),
    ):
        if hasattr(socket, name):  # not everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _check_address(peer: int, connection: socket.socket, host: str) -> None:
    found = connection.getpeername()[0]
    if found != host:
        raise DeviceLost(peer, f"came from {found} and not from its data address {host}")


def call(
    rank: int,
    peer: int,
    place: tuple[str, int],
    secret: bytes,
    timeout_s: float,
    source: str | None = None,
    tls: Tls | None = None,
) -> socket.socket:
    """A proved connection to `peer`, which may be busy with its own calls for a while.

    It begins at the address `source`, where one is given. Raises DeviceLost.
    """
    deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
    own = None if source is None else (source, 0)
    try:
        connection = socket.create_connection(place, timeout=timeout_s, source_address=own)
    except OSError as error:
        raise DeviceLost(peer, f"cannot be reached ({error.strerror or error})") from error
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    found = None
    handshake = _Handshake(connection, rank, secret, tls, is_caller=True)
    with contextlib.suppress(OSError):  # whatever it does, it is not the peer
        handshake.begin()
        while found is None and poll.poll(max(0.0, (deadline_ns - time.monotonic_ns()) / 1e6)):
            found = handshake.advance()
    if found != peer:
        handshake.connection.close()
        raise DeviceLost(peer, "did not prove that it belongs to this run")
    return handshake.connection


class _Handshake:
    """Challenge and answer in both directions on one connection, then TLS if there is any; it
    never waits.

    The caller speaks first. A new connection's buffer is empty and takes all that is sent here.
    """

    def __init__(
        self,
        connection: socket.socket,
        rank: int,
        secret: bytes,
        tls: Tls | None,
        *,
        is_caller: bool,
    ) -> None:
        self.connection = connection
        self._rank, self._secret, self._tls = rank, secret, tls
        self._is_caller = is_caller
        self._proved: int | None = None
        self._role, self._other = (b"caller", b"callee") if is_caller else (b"callee", b"caller")
        self._nonce = secrets.token_bytes(32)
        self._hello = _HELLO.pack(_MAGIC, rank, self._nonce)
        self._received = b""
        self._has_answered = False
        connection.setblocking(False)

    def begin(self) -> None:
        """Of the caller."""
        self.connection.send(self._hello)

    @property
    def num_received(self) -> int:
        return len(self._received)

    def advance(self) -> int | None:
        """Take in what has come: the peer's rank once it is proved. OSError: it is a stranger."""
        if self._proved is None:
            self._proved = self._prove()
            if self._proved is None or self._tls is None:
                return self._proved
            self.connection = self._tls.begun(self.connection, is_caller=self._is_caller)
        assert self._tls is not None
        assert isinstance(self.connection, TlsSocket)
        try:
            self.connection.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        self._tls.check(self.connection, self._proved)
        return self._proved

    def _prove(self) -> int | None:
        piece = self.connection.recv(_HELLO.size + _PROOF_BYTES - len(self._received))
        if not piece:
            raise ConnectionError("closed")
        self._received += piece
        hello, proof = self._received[: _HELLO.size], self._received[_HELLO.size :]
        if not hello.startswith(_MAGIC[: len(hello)]):
            raise ConnectionError("another protocol")
        if len(hello) < _HELLO.size:
            return None
        _, peer, nonce = _HELLO.unpack(hello)
        if not self._has_answered:
            own = b"" if self._role == b"caller" else self._hello
            self.connection.send(own + _proof(self._secret, self._role, self._rank, peer, nonce))
            self._has_answered = True
        if len(proof) < _PROOF_BYTES:
            return None
        if not hmac.compare_digest(
            proof, _proof(self._secret, self._other, peer, self._rank, self._nonce)
        ):
            raise ConnectionError("another secret")
        return peer


def _proof(secret: bytes, role: bytes, prover: int, verifier: int, nonce: bytes) -> bytes:
    return hmac.digest(secret, role + struct.pack("<II", prover, verifier) + nonce, "sha256")
