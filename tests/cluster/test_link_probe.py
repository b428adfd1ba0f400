"""What a link gives: over loopback it is fast, and nobody else is answered."""

from __future__ import annotations

import secrets
import threading

import pytest

from tpi_bench.cluster.link_probe import answer, ask, pairs_of
from tpi_bench.contract.runtime import DeviceLost
from tpi_bench.processes.handshake import Listener


def probed(theirs: bytes, ours: bytes) -> object:
    listener = Listener("127.0.0.2")
    thread = threading.Thread(target=answer, args=(listener, 1, 0, theirs), daemon=True)
    thread.start()
    return ask(0, 1, ("127.0.0.2", listener.port), "127.0.0.1", ours)


def test_a_link_is_measured_one_way() -> None:
    secret = secrets.token_bytes(32)
    found = probed(secret, secret)
    assert (found.src, found.dst) == (0, 1)
    assert 0 < found.round_trip_min_s <= found.round_trip_s < 0.1
    assert found.bandwidth_mbps > 100


def test_a_link_is_measured_under_tls() -> None:
    pytest.importorskip("cryptography")
    from tests.helpers.identities import sides

    tls, secret, listener = sides(2), secrets.token_bytes(32), Listener("127.0.0.2")
    place = ("127.0.0.2", listener.port)
    given = (listener, 1, 0, secret, tls[1])
    threading.Thread(target=answer, args=given, daemon=True).start()
    found = ask(0, 1, place, "127.0.0.1", secret, tls[0])
    assert 0 < found.round_trip_min_s <= found.round_trip_s < 0.1
    assert found.bandwidth_mbps > 50


def test_who_does_not_know_the_secret_is_not_answered() -> None:
    with pytest.raises(DeviceLost, match="did not prove that it belongs to this run"):
        probed(b"a" * 32, b"b" * 32)


def test_all_ways_between_different_hosts() -> None:
    assert pairs_of(["a", "b"]) == [(0, 1), (1, 0)]
    assert pairs_of(["a", "a", "b"]) == [(0, 2), (1, 2), (2, 0), (2, 1)]
