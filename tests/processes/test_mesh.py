"""The wire: proved connections, frames in place, emulated links that keep their promise."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import statistics
import struct
import threading
import time

import numpy as np
import pytest

from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.runtime import DeviceLost
from tpi_bench.processes.handshake import Listener, connect_mesh
from tpi_bench.processes.mesh import Mesh

SECRET = bytes(range(32))


def make_meshes(
    world_size: int,
    network: NetworkConfig,
    secret_of: dict[int, bytes] | None = None,
    within_s: float = 3.0,
) -> list[Mesh]:
    """Meshes of all ranks in this process, formed by threads as processes would."""
    listeners = [Listener() for _ in range(world_size)]
    ports = [listener.port for listener in listeners]
    meshes: list[Mesh | None] = [None] * world_size
    errors: list[BaseException] = []

    def join(rank: int) -> None:
        secret = (secret_of or {}).get(rank, SECRET)
        try:
            sockets = connect_mesh(rank, ports, listeners[rank], secret, within_s)
            meshes[rank] = Mesh(rank, sockets, network)
        except DeviceLost as error:
            errors.append(error)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [mesh for mesh in meshes if mesh is not None]


def close(meshes: list[Mesh]) -> None:
    for mesh in meshes:
        mesh.close()


def test_frames_arrive_in_place_and_in_order() -> None:
    meshes = make_meshes(3, NetworkConfig())
    rng = np.random.default_rng(0)
    messages = [rng.integers(0, 256, size, dtype=np.uint8) for size in (1, 1000, 70_000)]
    for message in messages:
        meshes[2].send(0, message)
    for message in messages:
        out = np.zeros_like(message)
        meshes[0].recv(2, out)
        assert (out == message).all()
    close(meshes)


def test_everyone_may_send_before_anyone_receives() -> None:
    """32 MB each way is far beyond what the kernel buffers: sends must not wait for receivers."""
    meshes = make_meshes(2, NetworkConfig())
    payloads = [np.full(32 << 20, rank + 1, dtype=np.uint8) for rank in (0, 1)]
    results = [np.zeros(32 << 20, dtype=np.uint8) for _ in (0, 1)]

    def swap(rank: int) -> None:
        meshes[rank].send(1 - rank, payloads[rank])
        payloads[rank][:] = 0  # the caller may reuse its buffer at once
        meshes[rank].recv(1 - rank, results[rank])

    threads = [threading.Thread(target=swap, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (results[0] == 2).all()
    assert (results[1] == 1).all()
    close(meshes)


def test_a_frame_that_is_too_short_is_not_waited_for() -> None:
    meshes = make_meshes(2, NetworkConfig(timeout_s=60))
    meshes[1].send(0, np.zeros(50, np.uint8))
    with pytest.raises(ValueError, match="rank 1 sent 50 bytes where 100 are received"):
        meshes[0].recv(1, np.empty(100, np.uint8))
    close(meshes)


def test_a_frame_of_the_wrong_length_is_refused() -> None:
    meshes = make_meshes(2, NetworkConfig())
    meshes[0].send(1, np.zeros(100, dtype=np.uint8))
    with pytest.raises(ValueError, match="rank 0 sent 100 bytes where 50 are received"):
        meshes[1].recv(0, np.zeros(50, dtype=np.uint8))
    close(meshes)


def test_silence_and_closing_are_told_apart() -> None:
    meshes = make_meshes(2, NetworkConfig(timeout_s=0.2))
    with pytest.raises(DeviceLost, match=r"rank 0 sent nothing for 0\.2 s \(network\.timeout_s\)"):
        meshes[1].recv(0, np.zeros(1, dtype=np.uint8))
    meshes[0].close()
    with pytest.raises(DeviceLost, match="rank 0 closed its connection"):
        meshes[1].recv(0, np.zeros(1, dtype=np.uint8))
    meshes[1].close()


def scan(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as scanner:
        scanner.sendall(data)
        scanner.settimeout(5)
        received = b""
        with contextlib.suppress(ConnectionResetError):  # a refusal, when it had more to say
            while piece := scanner.recv(4096):
                received += piece
        return received


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 100,
        struct.pack("<4sI32s", b"TPI1", 1, bytes(32)) + bytes(32),  # the right form, no secret
        b"",
    ],
    ids=["http", "forged", "silent"],
)
def test_strangers_are_refused_and_logged(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    listener, peer_listener = Listener(), Listener()
    ports = [listener.port, peer_listener.port]
    found: dict[str, dict[int, socket.socket]] = {}

    def accept() -> None:
        found["sockets"] = connect_mesh(0, ports, listener, SECRET, 8.0)

    with caplog.at_level(logging.WARNING):
        server = threading.Thread(target=accept)
        server.start()
        answer = scan(ports[0], data)
        peer = connect_mesh(1, ports, peer_listener, SECRET, 8.0)
        server.join()
    assert SECRET not in answer
    assert "rank 0 refused a connection from 127.0.0.1" in caplog.text
    assert found["sockets"].keys() == {1}
    assert peer.keys() == {0}
    with pytest.raises(ConnectionRefusedError):  # the door is shut once everyone is in
        socket.create_connection(("127.0.0.1", ports[0]), timeout=1)
    for connection in (*found["sockets"].values(), *peer.values()):
        connection.close()


def test_a_device_with_another_secret_does_not_get_in() -> None:
    with pytest.raises(DeviceLost, match="rank"):
        make_meshes(2, NetworkConfig(), {1: secrets.token_bytes(32)}, within_s=1.0)


@pytest.mark.parametrize("num_strangers", [40, 200])
def test_a_crowd_of_silent_strangers_delays_nobody(num_strangers: int) -> None:
    """They are in the queue first, and there may be more of them than are let in at once."""
    listeners = [Listener() for _ in range(3)]
    ports = [listener.port for listener in listeners]
    strangers = [
        socket.create_connection(("127.0.0.1", port), timeout=5)
        for port in ports
        for _ in range(num_strangers)
    ]
    meshes: dict[int, dict[int, socket.socket]] = {}

    def join(rank: int) -> None:
        meshes[rank] = connect_mesh(rank, ports, listeners[rank], SECRET, 10.0)

    start = time.monotonic()
    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 1.5
    assert {rank: set(mesh) for rank, mesh in meshes.items()} == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}}
    for connection in (*strangers, *(c for mesh in meshes.values() for c in mesh.values())):
        connection.close()


def test_a_slow_stranger_is_shown_out(caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that drip in win no time."""
    listener = Listener()
    stranger = socket.create_connection(("127.0.0.1", listener.port), timeout=5)

    def drip() -> None:
        with contextlib.suppress(OSError):
            for byte in b"TPI1" + bytes(36):
                stranger.send(bytes([byte]))
                time.sleep(0.1)

    thread = threading.Thread(target=drip)
    thread.start()
    start = time.monotonic()
    with pytest.raises(DeviceLost, match="rank 1 did not connect in time"):
        listener.accept(0, {1}, SECRET, time.monotonic_ns() + 3_000_000_000)
    assert time.monotonic() - start < 3.5
    assert "rank 0 refused a connection from 127.0.0.1" in caplog.text
    thread.join()
    stranger.close()
    listener.close()


def test_a_peer_that_is_gone_is_named() -> None:
    listeners = [Listener(), Listener()]
    ports = [listener.port for listener in listeners]
    listeners[0].close()
    with pytest.raises(DeviceLost, match=r"rank 0 cannot be reached \(Connection refused\)"):
        connect_mesh(1, ports, listeners[1], SECRET, 1.0)


def round_trips(meshes: list[Mesh], count: int, nbytes: int = 8) -> list[float]:
    def answer() -> None:
        buffer = np.zeros(nbytes, dtype=np.uint8)
        for _ in range(count):
            meshes[1].recv(0, buffer)
            meshes[1].send(0, buffer)

    thread = threading.Thread(target=answer)
    thread.start()
    buffer, times = np.zeros(nbytes, dtype=np.uint8), []
    for _ in range(count):
        start = time.monotonic()
        meshes[0].send(1, buffer)
        meshes[0].recv(1, buffer)
        times.append(time.monotonic() - start)
    thread.join()
    return times


@pytest.mark.parametrize(("topology", "hops"), [("switch", 2), ("paper", 4)])
@pytest.mark.parametrize("latency_ms", [0.5, 2.0])
def test_emulated_round_trips_are_never_too_short(
    topology: str, hops: int, latency_ms: float
) -> None:
    """A lower bound only, with the stated tolerance: a busy machine may make any of them longer."""
    meshes = make_meshes(2, NetworkConfig(topology=topology, link_latency_ms=latency_ms))
    asked = 2 * hops * latency_ms / 1e3
    times = round_trips(meshes, 12)
    assert min(times) > asked - max(60e-6, 0.05 * asked)
    assert statistics.median(times) < 3 * asked + 0.02
    close(meshes)


def test_bandwidth_takes_its_time() -> None:
    network = NetworkConfig(topology="switch", link_latency_ms=0.5, bandwidth_mbps=80)
    meshes = make_meshes(2, network)
    times = round_trips(meshes, 5, nbytes=100_000)  # 10 ms each way at 80 Mbit/s
    assert min(times) > 0.022 * 0.95
    close(meshes)


def test_the_masters_down_link_is_shared() -> None:
    """Three workers send 100 KB at once: the last is there after three transfer times."""
    network = NetworkConfig(topology="switch", link_latency_ms=1, bandwidth_mbps=80)
    meshes = make_meshes(4, network)
    payload = np.zeros(100_000, dtype=np.uint8)
    start = time.monotonic()
    for rank in (1, 2, 3):
        meshes[rank].send(0, payload)
    for rank in (1, 2, 3):
        meshes[0].recv(rank, payload)
    assert time.monotonic() - start > 0.032 * 0.95
    close(meshes)
