"""What `testbed=cluster` says before there is a cluster, and how it fills a job."""

from __future__ import annotations

import sys

import pytest

from tests.cluster.test_nodes import place
from tpi_bench.cluster.ray_cluster import cluster_at
from tpi_bench.cluster.testbed import ClusterTestbed
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.engine.tpi import TpiSystem

NONE = NetworkConfig()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection of another test."""
    cluster_at.cache_clear()


def test_there_are_as_many_devices_as_nodes_are_named() -> None:
    assert ClusterTestbed().num_devices == 2
    assert ClusterTestbed(nodes=["a", "b", "c"]).num_devices == 3
    assert ClusterTestbed(nodes=["a", "b", "c"], num_devices=2).num_devices == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_devices": 0}, "testbed.num_devices=0 must be at least 1"),
        ({"threads_per_device": "all"}, "testbed.threads_per_device=all must be a whole number"),
        ({"node_cache_gb": 0}, "testbed.node_cache_gb=0 must be above 0, or null for no limit"),
    ],
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterTestbed(**values)


@pytest.mark.usefixtures("alone")
def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="need Ray, which is not installed; pip install -c"):
        ClusterTestbed().check(TpiSystem(), NONE, needs_tokens=True)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "testbed.address=127.0.0.1:1 does not answer"),
        ("laptop", "testbed.address=laptop must be HOST:PORT"),
    ],
)
def test_an_address_without_ray_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", object())
    with pytest.raises(ValueError, match=message):
        ClusterTestbed(address=address).check(TpiSystem(), NONE, needs_tokens=True)


def test_links_are_not_emulated() -> None:
    slow = NetworkConfig(topology="switch", link_latency_ms=2)
    with pytest.raises(ValueError, match=r"network.link_latency_ms=2 is emulated, and testbed=clu"):
        ClusterTestbed().check(TpiSystem(), slow, needs_tokens=True)
    wifi = NetworkConfig(topology="wifi")
    with pytest.raises(ValueError, match="network=wifi is emulated"):
        ClusterTestbed().check(TpiSystem(), wifi, needs_tokens=True)


class Known:
    """A connection that has found its nodes."""

    def __init__(self, testbed: ClusterTestbed, *numbers: int) -> None:
        key = (testbed.nodes, testbed.num_devices, testbed.share_nodes, testbed.data_address)
        self.places = {repr(key): [place(number) for number in numbers]}


def test_each_device_has_the_cores_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    testbed = ClusterTestbed(num_devices=3)
    known = Known(testbed, 1, 1, 2)
    monkeypatch.setattr("tpi_bench.cluster.testbed.cluster_at", lambda *given: known)
    assert testbed.threads(3) == 2
    machines = testbed.machines(None)  # type: ignore[arg-type]
    assert machines.names == "10.0.0.1, 10.0.0.1, 10.0.0.2 (laptop1 is the machine of 2)"
    assert not machines.share_cores
    many = ClusterTestbed(num_devices=3, threads_per_device=3)
    assert many.machines(None).share_cores  # type: ignore[arg-type]
