"""Connections between devices under TLS 1.3 (`network.tls=true`), known by their certificates.

Everybody makes a key of its own, which stays on its machine, and a certificate for the run
(`cluster/identities.py`); certificates travel with the run's secret. A peer is who has the key to
the very certificate that its rank has, so names, addresses and clocks do not count.
`handshake.py` puts a proved connection under TLS, `mesh.py` and `control.py` talk over it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_RECORD_BYTES = 1 << 14  # plain bytes of a TLS record at most
_LOOK_MS = 200  # between looks at the clock while waiting for a silent peer
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What one side has: its rank, its private key, and the certificate of each rank (PEM)."""

    rank: int
    key: str = field(repr=False)
    certificates: tuple[str, ...]


class Tls:
    """One side's, to put its connections under TLS. Made in the process that uses it."""

    def __init__(self, credentials: Credentials) -> None:
        self._certificates = [ssl.PEM_cert_to_DER_cert(pem) for pem in credentials.certificates]
        self._caller = _context(ssl.PROTOCOL_TLS_CLIENT, credentials)
        self._callee = _context(ssl.PROTOCOL_TLS_SERVER, credentials)
        self._callee.num_tickets = 0  # nobody comes back, and nothing is sent unasked

    def begun(self, connection: socket.socket, *, is_caller: bool) -> TlsSocket:
        """The connection, whose TLS handshake `do_handshake` is to make."""
        context = self._caller if is_caller else self._callee
        found = context.wrap_socket(
            connection, server_side=not is_caller, do_handshake_on_connect=False
        )
        assert isinstance(found, TlsSocket)
        return found

    def check(self, connection: TlsSocket, peer: int) -> None:
        """Raises ConnectionError where it is somebody else of the run."""
        if connection.getpeercert(binary_form=True) != self._certificates[peer]:
            raise ConnectionError("another certificate")

    def secured(
        self, connection: socket.socket, peer: int, timeout_s: float, *, is_caller: bool
    ) -> TlsSocket:
        """The connection under TLS, with `peer` at the other end. Raises OSError."""
        connection.settimeout(timeout_s)
        found = self.begun(connection, is_caller=is_caller)
        try:
            found.do_handshake()
            self.check(found, peer)
        except BaseException:
            found.close()
            raise
        return found


class TlsSocket(ssl.SSLSocket):
    """As `mesh.py` uses a socket: one thread may send while another receives.

    OpenSSL allows neither to wait inside it meanwhile, so this never blocks there: it must not be
    `blocking` where two threads use it, and waits by itself.
    """

    @property
    def _turn(self) -> threading.Lock:
        found: threading.Lock = self.__dict__.setdefault("_lock", threading.Lock())
        return found

    def recvmsg_into(  # type: ignore[override]
        self, buffers: Sequence[memoryview], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Any], int, None]:
        """What there is into the buffers; 0 bytes at the end. BlockingIOError where nothing is."""
        if not flags & socket.MSG_DONTWAIT and not self.pending():
            poll = select.poll()
            poll.register(self, select.POLLIN)
            poll.poll(_LOOK_MS)
        got = 0
        with self._turn:
            for buffer in buffers:
                begin = 0
                while begin < buffer.nbytes:
                    try:
                        piece = self.recv_into(buffer[begin:])
                    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                        if not got:
                            raise BlockingIOError from None
                        return got, [], 0, None
                    if not piece:
                        return got, [], 0, None
                    begin, got = begin + piece, got + piece
        return got, [], 0, None

    def sendmsg(  # type: ignore[override]
        self, buffers: Sequence[memoryview], ancdata: object = (), flags: int = 0
    ) -> int:
        """How many bytes the kernel has, in whole records. What is left is to be sent again as it
        is. BlockingIOError where it takes none.
        """
        taken = 0
        with self._turn:
            for buffer in buffers:
                for begin in range(0, buffer.nbytes, _RECORD_BYTES):
                    try:
                        taken += self.send(buffer[begin : begin + _RECORD_BYTES])
                    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                        if not taken:
                            raise BlockingIOError from None
                        return taken
        return taken


class TlsConnection:
    """What `control.py` needs of a pipe, over TLS. A message begins a record, so that none is left
    where `wait` would not see it.
    """

    def __init__(self, connection: TlsSocket) -> None:
        connection.setblocking(False)
        self._socket = connection

    def send_bytes(self, data: bytes) -> None:
        """Raises OSError when the other end is gone."""
        rest = memoryview(_LENGTH.pack(len(data)) + data)
        while rest:
            try:
                rest = rest[self._socket.sendmsg([rest]) :]
            except BlockingIOError:
                select.select([], [self._socket], [])

    def recv_bytes(self) -> bytes:
        """Wait for the next message. Raises EOFError or OSError."""
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
        return self._take(length)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _take(self, nbytes: int) -> bytes:
        found = memoryview(bytearray(nbytes))
        begin = 0
        while begin < nbytes:
            with contextlib.suppress(BlockingIOError):
                got = self._socket.recvmsg_into([found[begin:]])[0]
                if not got:
                    raise EOFError
                begin += got
        return bytes(found)


def _context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    """Mutual, TLS 1.3 alone, and nobody is trusted but the run's own certificates."""
    context = ssl.SSLContext(protocol)
    context.sslsocket_class = TlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate itself is compared
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata="".join(credentials.certificates))
    own = credentials.certificates[credentials.rank]
    with _as_file(own + credentials.key) as path:
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Python takes a key from a file only; where it can be, from one that is in memory alone."""
    if not hasattr(os, "memfd_create"):
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(text)
            file.flush()
            yield file.name
        return
    number = os.memfd_create("credentials")
    try:
        os.write(number, text.encode())
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)
