"""Relays carry a real program's bytes whole, and as late and as slowly as the links say."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tpi_bench.contract.network import NetworkConfig
from tpi_bench.host.fork import fork_context
from tpi_bench.processes.relay import Relays
from tpi_bench.processes.services import _echo, round_trips_ns

HOST = "127.0.0.1"


def network_of(link_latency_ms: float, bandwidth_mbps: float = 0.0) -> NetworkConfig:
    """Of two hops one way."""
    return NetworkConfig(
        topology="switch", link_latency_ms=link_latency_ms, bandwidth_mbps=bandwidth_mbps
    )


@pytest.fixture
def echo() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=_echo_for_each, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def _echo_for_each(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(4):
            threading.Thread(target=_echo, args=(listener,), daemon=True).start()


@contextlib.contextmanager
def relays(network: NetworkConfig, *services: list[int]) -> Iterator[list[list[int]]]:
    """Where the master reaches each device's services."""
    made = Relays(network, services, fork_context())
    pids = [process.pid for process, _ in made._processes]  # type: ignore[attr-defined]
    assert len(pids) == 1 + sum(map(bool, services))
    try:
        yield made.ports
    finally:
        made.end()
        assert not any(psutil.pid_exists(pid) for pid in pids)


def received(connection: socket.socket, nbytes: int) -> bytes:
    found = bytearray()
    while len(found) < nbytes and (data := connection.recv(1 << 20)):
        found += data
    return bytes(found)


@pytest.mark.parametrize("link_latency_ms", [0.25, 1.0])
def test_a_round_trip_takes_what_was_asked(echo: int, link_latency_ms: float) -> None:
    network = network_of(link_latency_ms)
    asked_ns = 2 * network.one_way_ns
    most_ns = asked_ns + max(80_000, 0.05 * asked_ns)
    times_ns = list[int]()
    for _ in range(20):
        with relays(network, [], [echo, echo], [echo, echo]) as ports:
            times_ns += round_trips_ns(ports, network)
        if min(times_ns) < most_ns:
            break  # the least: other workers' tests take the cores now and then
    assert len(times_ns) >= 4
    assert asked_ns - 80_000 < min(times_ns) < most_ns


def test_bytes_come_at_the_rate_of_the_link() -> None:
    """A megabyte at 40 Mbit/s, which is 0.2 s."""
    network, nbytes = network_of(0.5, 40.0), 1_000_000
    with (
        socket.create_server((HOST, 0)) as sink,
        relays(network, [], [0, sink.getsockname()[1]]) as ports,
    ):
        connection = socket.create_connection((HOST, ports[1][1]))
        program, _ = sink.accept()
        with connection, program:
            sender = threading.Thread(target=connection.sendall, args=(bytes(nbytes),))
            start = time.monotonic()
            sender.start()
            assert len(received(program, nbytes)) == nbytes
            took_s = time.monotonic() - start
            sender.join()
    asked_s = network.transfer_ns(nbytes) / 1e9 + network.one_way_ns / 1e9
    assert 0.95 * asked_s < took_s < 1.05 * asked_s + 0.05


def test_devices_share_the_masters_link(echo: int) -> None:
    """The same bytes to two devices at once take twice as long as to one."""
    network, nbytes = network_of(0.1, 80.0), 500_000
    with relays(network, [], [echo, echo], [echo, echo]) as ports:

        def exchange(rank: int) -> None:
            with socket.create_connection((HOST, ports[rank][1])) as connection:
                sender = threading.Thread(target=connection.sendall, args=(bytes(nbytes),))
                sender.start()
                assert len(received(connection, nbytes)) == nbytes
                sender.join()

        def timed(*ranks: int) -> float:
            threads = [threading.Thread(target=exchange, args=(rank,)) for rank in ranks]
            start = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return time.monotonic() - start

        alone_s = min(timed(1) for _ in range(3))  # others take the cores now and then
        both_s = min(timed(1, 2) for _ in range(3))
    assert alone_s > 0.05
    assert 1.5 * alone_s < both_s < 2.6 * alone_s


def test_nothing_is_lost_or_mixed(echo: int) -> None:
    """Several connections at once, more bytes than one piece, in both directions."""
    with relays(network_of(0.2), [], [echo, echo], [echo, echo]) as ports:
        failures: list[str] = []

        def exchange(seed: int) -> None:
            data = random.Random(seed).randbytes(700_000 + seed)
            with socket.create_connection((HOST, ports[1 + seed % 2][seed // 2])) as connection:
                sender = threading.Thread(target=connection.sendall, args=(data,))
                sender.start()
                if received(connection, len(data)) != data:
                    failures.append(f"stream {seed}")
                sender.join()

        threads = [threading.Thread(target=exchange, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_the_end_of_a_connection_travels_behind_its_bytes(echo: int) -> None:
    network = network_of(2.0)
    with (
        socket.create_server((HOST, 0)) as server,
        relays(network, [], [0, server.getsockname()[1]]) as ports,
    ):
        connection = socket.create_connection((HOST, ports[1][1]))
        program, _ = server.accept()
        connection.sendall(b"last")
        start_ns = time.monotonic_ns()
        connection.close()
        assert program.recv(100) == b"last"
        assert program.recv(100) == b""
        assert time.monotonic_ns() - start_ns > network.one_way_ns - 500_000
        program.close()


def test_a_program_that_is_not_there() -> None:
    """Its client is told, as it would be without relays: the connection ends."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with (
        relays(network_of(0.1), [], [0, port]) as ports,
        socket.create_connection((HOST, ports[1][1]), timeout=5.0) as connection,
    ):
        assert connection.recv(10) == b""


def test_a_relay_ends_with_its_launcher(echo: int) -> None:
    made = Relays(network_of(0.1), [[], [echo, echo]], fork_context())
    pids = [process.pid for process, _ in made._processes]  # type: ignore[attr-defined]
    for _, connection in made._processes:
        connection.close()
    for process, _ in made._processes:
        process.join(5.0)  # type: ignore[attr-defined]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    made._processes = []
