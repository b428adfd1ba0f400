"""Devices on several machines: each connection runs between the addresses of its two ranks."""

from __future__ import annotations

import secrets
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tpi_bench.contract.runtime import DeviceLost
from tpi_bench.processes.handshake import Listener, connect_mesh

SECRET = secrets.token_bytes(32)
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


def connected(said: dict[int, tuple[str, ...]]) -> list[dict[int, socket.socket]]:
    """Three ranks; `said` are the addresses that a rank believes in, if others than `HOSTS`."""
    listeners = [Listener(said.get(rank, HOSTS)[rank]) for rank in range(3)]
    ports = [listener.port for listener in listeners]
    with ThreadPoolExecutor(3) as threads:
        asked = [
            threads.submit(
                connect_mesh, rank, ports, listeners[rank], SECRET, 5.0, said.get(rank, HOSTS)
            )
            for rank in range(3)
        ]
        return [each.result() for each in asked]


def test_connections_run_between_data_addresses() -> None:
    for rank, sockets in enumerate(connected({})):
        for peer, connection in sockets.items():
            assert connection.getsockname()[0] == HOSTS[rank]
            assert connection.getpeername()[0] == HOSTS[peer]
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            connection.close()


def test_a_connection_from_another_address_is_none() -> None:
    """Rank 2 calls from an address that the others do not know."""
    with pytest.raises(DeviceLost, match=r"rank 2 came from 127.0.0.9 and not from its data addr"):
        connected({2: ("127.0.0.1", "127.0.0.2", "127.0.0.9")})
