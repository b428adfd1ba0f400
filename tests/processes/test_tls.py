"""Under TLS as without: frames, threads, and strangers who connect, replay, forge or flood."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.processes.test_mesh import SECRET
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.runtime import DeviceLost
from tpi_bench.processes.control import Control, StatusQuestion, Token
from tpi_bench.processes.handshake import Listener, call, connect_mesh
from tpi_bench.processes.mesh import Mesh
from tpi_bench.processes.tls import Credentials, Tls, TlsConnection, TlsSocket

pytest.importorskip("cryptography")  # of the extra `cluster`

Sockets = dict[int, socket.socket]
BOTH = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])


@pytest.fixture(scope="module")
def tls() -> list[Tls]:
    from tests.helpers.identities import sides

    return sides(3)


def joined(
    count: int, tls: list[Tls] | None, listeners: list[Listener] | None = None
) -> list[Sockets]:
    """All ranks in this process, each in a thread as it would be in a process."""
    listeners = listeners or [Listener() for _ in range(count)]
    ports = [listener.port for listener in listeners]
    found: dict[int, Sockets] = {}

    def join(rank: int) -> None:
        own = tls[rank] if tls else None
        found[rank] = connect_mesh(rank, ports, listeners[rank], SECRET, 8.0, (), own)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(count)]


@pytest.fixture
def meshes(tls: list[Tls]) -> Iterator[list[Mesh]]:
    sockets = joined(2, tls)
    found = [Mesh(rank, each, NetworkConfig(timeout_s=2)) for rank, each in enumerate(sockets)]
    yield found
    for mesh in found:
        mesh.close()


def test_what_travels_is_encrypted_by_tls_1_3(tls: list[Tls]) -> None:
    """Through a wire tap: the secret message is not in what passes it."""
    listener, tap = Listener(), socket.create_server(("127.0.0.1", 0))
    passed = bytearray()

    def copy_both_ways() -> None:
        caller, _ = tap.accept()
        callee = socket.create_connection(("127.0.0.1", listener.port))
        other = {caller: callee, callee: caller}
        with caller, callee:
            while True:
                for ready in select.select([caller, callee], [], [])[0]:
                    piece = ready.recv(1 << 16)
                    if not piece:
                        return
                    passed.extend(piece)
                    other[ready].sendall(piece)

    threading.Thread(target=copy_both_ways, daemon=True).start()
    deadline_ns = time.monotonic_ns() + 8_000_000_000
    accepted: Sockets = {}
    server = threading.Thread(
        target=lambda: accepted.update(listener.accept(0, {1}, SECRET, deadline_ns, tls[0]))
    )
    server.start()
    connection = call(1, 0, tap.getsockname(), SECRET, 8.0, None, tls[1])
    server.join(8)
    meshes = [Mesh(0, accepted, NetworkConfig()), Mesh(1, {0: connection}, NetworkConfig())]
    message = np.frombuffer(b"nobody else may read this" * 100, np.uint8)
    out = np.zeros_like(message)
    meshes[1].send(0, message)
    meshes[0].recv(1, out)
    assert (out == message).all()
    assert isinstance(connection, TlsSocket)
    assert connection.version() == "TLSv1.3"
    assert len(passed) > message.nbytes
    assert b"nobody else" not in passed
    for mesh in meshes:
        mesh.close()
    listener.close()
    tap.close()


@pytest.mark.parametrize("nbytes", [1, 16_352, 16_353, 70_000, 1 << 22])
def test_frames_arrive_in_place_and_in_order(meshes: list[Mesh], nbytes: int) -> None:
    rng = np.random.default_rng(nbytes)
    messages = [rng.integers(0, 256, nbytes, dtype=np.uint8) for _ in range(3)]
    for message in messages:
        meshes[1].send(0, message)
    for message in messages:
        out = np.zeros_like(message)
        meshes[0].recv(1, out)
        assert (out == message).all()


def test_everyone_may_send_before_anyone_receives(meshes: list[Mesh]) -> None:
    """Far beyond what the kernel buffers: a thread sends on while the same connection receives."""
    payloads = [np.random.default_rng(rank).bytes(16 << 20) for rank in (0, 1)]
    results = [np.zeros(16 << 20, dtype=np.uint8) for _ in (0, 1)]

    def swap(rank: int) -> None:
        meshes[rank].send(1 - rank, np.frombuffer(payloads[rank], np.uint8))
        meshes[rank].recv(1 - rank, results[rank])

    threads = [threading.Thread(target=swap, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [result.tobytes() for result in results] == [payloads[1], payloads[0]]


def test_silence_and_closing_are_told_apart(tls: list[Tls]) -> None:
    sockets = joined(2, tls)
    meshes = [Mesh(rank, each, NetworkConfig(timeout_s=0.3)) for rank, each in enumerate(sockets)]
    with pytest.raises(DeviceLost, match=r"rank 0 sent nothing for 0\.3 s \(network\.timeout_s\)"):
        meshes[1].recv(0, np.zeros(1, dtype=np.uint8))
    meshes[0].close()
    with pytest.raises(DeviceLost, match="rank 0 closed its connection"):
        meshes[1].recv(0, np.zeros(1, dtype=np.uint8))
    meshes[1].close()


def test_an_altered_record_ends_the_connection(tls: list[Tls]) -> None:
    """Somebody on the way injects bytes: they are no message."""
    sockets = joined(2, tls)
    mesh = Mesh(0, sockets[0], NetworkConfig(timeout_s=2))
    os.write(sockets[1][0].fileno(), b"\x17\x03\x03\x00\x30" + bytes(48))
    with pytest.raises(DeviceLost, match="rank 1 closed its connection"):
        mesh.recv(1, np.zeros(8, dtype=np.uint8))
    mesh.close()
    sockets[1][0].close()


def recorded(listener: Listener, tls: list[Tls] | None) -> bytes:
    """All that rank 1 says to rank 0 when it joins it."""
    said = bytearray()
    tap = socket.create_server(("127.0.0.1", 0))

    def pass_on() -> None:
        caller, _ = tap.accept()
        callee = socket.create_connection(("127.0.0.1", listener.port))
        with caller, callee:
            while ready := select.select([caller, callee], [], [], 1.0)[0]:
                for each in ready:
                    piece = each.recv(1 << 16)
                    if not piece:
                        return
                    if each is caller:
                        said.extend(piece)
                    (callee if each is caller else caller).sendall(piece)

    between = threading.Thread(target=pass_on)
    between.start()
    call(1, 0, tap.getsockname(), SECRET, 8.0, None, tls[1] if tls else None).close()
    between.join(8)
    tap.close()
    return bytes(said)


@BOTH
def test_who_replays_what_a_device_said_is_not_let_in(
    encrypted: bool, tls: list[Tls], caplog: pytest.LogCaptureFixture
) -> None:
    """A whole handshake from the run itself, at the same door, before the device comes again."""
    own = tls if encrypted else None
    listener, others = Listener(), Listener()
    first: list[Sockets] = []
    deadline_ns = time.monotonic_ns() + 8_000_000_000
    door = threading.Thread(
        target=lambda: first.append(
            listener.accept(0, {1}, SECRET, deadline_ns, own[0] if own else None)
        )
    )
    door.start()
    said = recorded(listener, own)
    door.join(8)
    assert len(said) > 70
    with caplog.at_level(logging.WARNING):
        stranger = socket.create_connection(("127.0.0.1", listener.port), timeout=5)
        stranger.sendall(said)
        start_s = time.monotonic()
        found = joined(2, own, [listener, others])
        assert time.monotonic() - start_s < 1.5
    assert "rank 0 refused a connection from 127.0.0.1" in caplog.text
    assert [set(each) for each in found] == [{1}, {0}]
    for each in (*found, *first):
        for connection in each.values():
            connection.close()
    stranger.close()


def test_who_knows_the_secret_and_has_no_key_is_not_let_in(
    tls: list[Tls], caplog: pytest.LogCaptureFixture
) -> None:
    """Certificates are public: the stranger shows a device's without its key, or one of its own."""
    from tests.helpers.identities import sides

    listeners = [Listener(), Listener()]
    outsiders = [sides(3)[1], None, tls[2]]  # another run's, none at all, another rank's
    done: list[object] = []

    def intrude(outsider: Tls | None) -> None:
        place = ("127.0.0.1", listeners[0].port)
        with contextlib.suppress(DeviceLost, OSError):
            connection = call(1, 0, place, SECRET, 3.0, None, outsider)
            connection.settimeout(3)
            done.append(connection.recv(1))

    threads = [threading.Thread(target=intrude, args=(each,)) for each in outsiders]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    start_s = time.monotonic()
    with caplog.at_level(logging.WARNING):
        found = joined(2, tls, listeners)
    assert time.monotonic() - start_s < 2.5
    assert [set(each) for each in found] == [{1}, {0}]
    for thread in threads:
        thread.join(5)
    assert b"".join(piece for piece in done if isinstance(piece, bytes)) == b""
    assert caplog.text.count("refused a connection") >= 2
    message, out = np.arange(9, dtype=np.uint8), np.zeros(9, np.uint8)
    meshes = [Mesh(rank, each, NetworkConfig(timeout_s=2)) for rank, each in enumerate(found)]
    meshes[1].send(0, message)
    meshes[0].recv(1, out)
    assert (out == message).all()
    for mesh in meshes:
        mesh.close()


def test_a_caller_finds_out_who_it_has_called(tls: list[Tls]) -> None:
    """A door with the secret and another rank's key is not the one that was called."""
    listener = Listener()
    deadline_ns = time.monotonic_ns() + 3_000_000_000

    def accept() -> None:
        with contextlib.suppress(DeviceLost):
            listener.accept(0, {1}, SECRET, deadline_ns, tls[2])

    thread = threading.Thread(target=accept)
    thread.start()
    with pytest.raises(DeviceLost, match="did not prove that it belongs to this run"):
        call(1, 0, ("127.0.0.1", listener.port), SECRET, 2.0, None, tls[1])
    listener.give_up()
    thread.join(5)
    listener.close()


@BOTH
def test_a_crowd_of_strangers_delays_nobody(encrypted: bool, tls: list[Tls]) -> None:
    """Silent ones, some that begin a handshake, and some that greet as TLS does."""
    listeners = [Listener() for _ in range(3)]
    greetings = (b"", struct.pack("<4sI", b"TPI1", 1) + bytes(10), b"\x16\x03\x01\x02\x00\x01")
    crowd = []
    for number in range(120):
        for listener in listeners:
            stranger = socket.create_connection(("127.0.0.1", listener.port), timeout=5)
            stranger.sendall(greetings[number % 3])
            crowd.append(stranger)
    start_s = time.monotonic()
    found = joined(3, tls if encrypted else None, listeners)
    assert time.monotonic() - start_s < 2.0
    assert [set(each) for each in found] == [{1, 2}, {0, 2}, {0, 1}]
    for connection in (*crowd, *(c for each in found for c in each.values())):
        connection.close()


@pytest.fixture
def controls(tls: list[Tls]) -> Iterator[list[Control]]:
    ends = socket.socketpair()
    found: dict[int, TlsConnection] = {}

    def open_end(rank: int) -> None:
        found[rank] = TlsConnection(
            tls[rank].secured(ends[rank], 1 - rank, 5.0, is_caller=rank == 1)
        )

    threads = [threading.Thread(target=open_end, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    yield [Control(found[0]), Control(found[1])]
    for each in found.values():
        each.close()


def test_control_messages_are_heard_one_at_a_time(controls: list[Control]) -> None:
    """What waits for the launcher is in the kernel, where `wait` sees it, never half read."""
    from multiprocessing.connection import wait

    launcher, device = controls
    for number in range(3):
        device.send(Token(number))
    for number in range(3):
        assert wait([launcher.connection], 5) == [launcher.connection]
        assert launcher.receive(Token) == Token(number)
    assert wait([launcher.connection], 0.05) == []


def test_a_long_message_and_an_answer_cross_each_other(controls: list[Control]) -> None:
    launcher, device = controls
    text = os.urandom(3 << 20).hex().encode()
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(device.connection.recv_bytes()))
    reader.start()
    sender = threading.Thread(target=device.send, args=(Token(7),))
    sender.start()
    launcher.connection.send_bytes(text)
    assert launcher.receive(Token) == Token(7)
    reader.join(20)
    sender.join(5)
    assert heard == [text]


def test_a_control_connection_that_closes_is_told(controls: list[Control]) -> None:
    launcher, device = controls
    device.connection.close()
    with pytest.raises((EOFError, OSError)):
        launcher.receive(StatusQuestion)


def test_a_key_is_not_shown_and_travels_to_the_device() -> None:
    credentials = Credentials(rank=1, key="PRIVATE", certificates=("a", "b"))
    assert "PRIVATE" not in repr(credentials)
    assert pickle.loads(pickle.dumps(credentials)) == credentials


def test_older_tls_is_refused(tls: list[Tls]) -> None:
    ends = socket.socketpair()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    refused: list[Exception] = []

    def serve() -> None:
        try:
            tls[0].secured(ends[0], 1, 3.0, is_caller=False)
        except OSError as error:
            refused.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(ssl.SSLError):
        old.wrap_socket(ends[1])
    thread.join(5)
    assert len(refused) == 1
