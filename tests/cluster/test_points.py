"""Points over three machines on this host, joined by Ray: what devices say, and how they fail."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_demo.driver import Driver
from tests.cluster_demo.machines import Machines
from tests.helpers.advising import SMALL

pytestmark = pytest.mark.cluster
POINT = (
    "model=debug",
    "workload.prompt_ids=[1,2,3]",
    "workload.num_new_tokens=6",
    "network.timeout_s=2",
)
LONG = ("workload.num_new_tokens=500", "testbed.threads_per_device=1")


@pytest.fixture
def driver(machines: Machines, drivers: list[Driver]) -> Driver:
    """One for all tests that do not end it."""
    if not drivers or drivers[-1].process.poll() is not None:
        drivers.append(Driver(machines))
    return drivers[-1]


@pytest.fixture(scope="module")
def drivers() -> Iterator[list[Driver]]:
    found: list[Driver] = []
    yield found
    for driver in found:
        driver.close()


@pytest.fixture
def cluster(
    machines: Machines, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ...]:
    """What is typed for a point of three."""
    folder = tmp_path_factory.getbasetemp()
    return (
        *POINT,
        "testbed=cluster",
        f"testbed.address={machines.address}",
        "testbed.num_devices=3",
        "testbed.share_files=false",
        f"testbed.node_cache_dir={folder}/node-ADDRESS",
        f"cache_dir={cache_dir}",
    )


@pytest.fixture(scope="module")
def alone(machines: Machines, drivers: list[Driver], cache_dir: Path) -> list[int]:
    """The tokens of one device."""
    if not drivers:
        drivers.append(Driver(machines))
    found = drivers[-1].run(*POINT, "testbed.num_devices=1", f"cache_dir={cache_dir}")
    tokens: list[int] = found["tokens"]
    return tokens


def begun(driver: Driver, *arguments: str) -> float:
    """A long point at its first token; when that was."""
    driver.begin(arguments)
    said = driver.hear()
    assert "begun" in said, said
    return time.monotonic()


def ended(driver: Driver) -> dict[str, Any]:
    while "begun" in (said := driver.hear()):
        pass
    return said


def test_the_tokens_are_those_of_one_device(
    machines: Machines, driver: Driver, cluster: tuple[str, ...], alone: list[int], tmp_path: Path
) -> None:
    found = driver.run(*cluster, "testbed.trace=true")
    assert (found["status"], found["error"]) == ("ok", None)
    assert found["tokens"] == alone
    places = [device["profile"] for device in found["devices"]]
    assert [place.split()[1] for place in places] == machines.addresses
    assert all(device["memory_bps"] > 1e8 for device in found["devices"])
    assert found["devices"][0]["clock_error_ns"] == 0
    assert all(0 < device["clock_error_ns"] < 50e6 for device in found["devices"][1:])
    starts = [min(s["start_ns"] for s in found["spans"] if s["rank"] == rank) for rank in range(3)]
    assert max(starts) - min(starts) < 20e9  # on one clock
    assert machines.await_no_devices()


def test_each_node_keeps_its_own_blocks_and_gets_them_once(
    machines: Machines, driver: Driver, cluster: tuple[str, ...], tmp_path: Path
) -> None:
    own = [f"testbed.node_cache_dir={tmp_path}/ADDRESS", "system=pipeline"]
    assert driver.run(*cluster, *own)["status"] == "ok"
    held = [
        {path.name for path in (tmp_path / address / "by_content").iterdir()}
        for address in machines.addresses
    ]
    assert all(len(files) > 1 for files in held)
    assert not held[1] & held[2]
    before = {path: path.stat().st_ctime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert driver.run(*cluster, *own)["status"] == "ok"
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before.keys()


@pytest.mark.parametrize(
    "variant",
    [
        ("system=tpi_ring",),
        ("system=tpi_direct",),
        ("system=tpi", "system.window=2"),
        ("system=pipeline",),
        ("system=galaxy",),
        ("network.tls=true",),
        ("network.tls=true", "system=tpi_direct", "system.window=2"),
    ],
    ids=" ".join,
)
def test_every_way_gives_these_tokens(
    driver: Driver, cluster: tuple[str, ...], alone: list[int], variant: tuple[str, ...]
) -> None:
    found = driver.run(*cluster, *variant)
    assert (found.get("error"), found.get("tokens")) == (None, alone)


@pytest.mark.parametrize("weights", ["q4", "q8"])
def test_quantised_weights_give_the_tokens_of_one_device(
    driver: Driver, cluster: tuple[str, ...], cache_dir: Path, weights: str
) -> None:
    own = (*SMALL, "workload.prompt_ids=[1,2,3]", f"model.weights={weights}")
    alone = driver.run(*POINT, *own, "testbed.num_devices=1", f"cache_dir={cache_dir}")
    found = driver.run(*cluster, *own)
    assert (found.get("error"), found.get("tokens")) == (None, alone["tokens"])


def test_what_tls_costs_stands_beside_each_link(
    machines: Machines, driver: Driver, cluster: tuple[str, ...]
) -> None:
    plain, under = driver.run(*cluster), driver.run(*cluster, "network.tls=true")
    assert (plain["row"]["tls"], under["row"]["tls"]) == (False, True)
    assert len(plain["links"]) == len(under["links"]) == 6
    assert all(math.isnan(link["tls_round_trip_s"]) for link in plain["links"])
    for link in under["links"]:
        assert 0 < link["round_trip_min_s"] <= link["round_trip_s"]
        assert 0 < link["tls_round_trip_s"] < 0.1
        assert link["tls_bandwidth_mbps"] > 0


@pytest.mark.parametrize("tls", ["false", "true"])
def test_who_tries_all_ports_gets_nothing_and_holds_nobody_up(
    machines: Machines, driver: Driver, cluster: tuple[str, ...], alone: list[int], tls: str
) -> None:
    """From another machine of the network, all the time from before the point to its end."""
    places = [f"{own}={machines.rays[n].pid}" for n, own in enumerate(machines.addresses)]
    command = [sys.executable, "-m", "tests.cluster_demo.scanner", *places]
    stranger = subprocess.Popen(
        machines.command(2, command), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert stranger.stdout is not None
    assert stranger.stdout.readline() == "begun\n"
    try:
        found = driver.run(*cluster, f"network.tls={tls}")
    finally:
        stranger.terminate()
        said, _ = stranger.communicate(timeout=20)
    assert (found.get("refused"), found.get("error"), found.get("tokens")) == (None, None, alone)
    num_in, longest = map(int, said.split())
    assert num_in >= 8  # at the door of devices at least, if not at those of all
    assert longest <= 72  # a nonce and a proof
    assert machines.await_no_devices()


def test_devices_that_share_nodes_are_marked(
    machines: Machines, driver: Driver, cluster: tuple[str, ...], alone: list[int]
) -> None:
    found = driver.run(*cluster, "testbed.share_nodes=true", "testbed.num_devices=4")
    assert (found.get("refused"), found.get("tokens")) == (None, alone)
    assert "devices share nodes (testbed.share_nodes=true)" in found["row"]["note"]
    places = [device["profile"].split()[1] for device in found["devices"]]
    assert places == [*machines.addresses, machines.addresses[0]]


def test_a_conversation_over_machines_is_that_of_one_device(
    machines: Machines, cluster: tuple[str, ...], cache_dir: Path
) -> None:
    """`task=chat` as one types it, with turns from a pipe."""
    spread = [text for text in cluster if not text.startswith("workload.prompt_ids")]
    here = ("model=debug", "workload.num_new_tokens=6", f"cache_dir={cache_dir}")
    found = []
    for own in (spread, [*here, "testbed.num_devices=1"]):
        command = [sys.executable, "-m", "tpi_bench", "task=chat", "report=json", *own]
        done = subprocess.run(
            machines.command(0, command),
            input="1 2 3\n4 5\n",
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        turns = json.loads(done.stdout.strip().splitlines()[-1])["turns"]
        found.append([turn["token_ids"] for turn in turns])
    assert found[0] == found[1]
    assert [len(turn) for turn in found[0]] == [6, 6]


def test_an_address_that_others_cannot_call_is_refused(
    machines: Machines, driver: Driver, cluster: tuple[str, ...]
) -> None:
    """As of a machine whose own name is 127.0.1.1 in its /etc/hosts."""
    if not machines.has_links:
        pytest.skip("without network namespaces all loopback addresses can be called")
    for number in range(3):
        added = ["ip", "addr", "add", "127.0.1.1/32", "dev", "lo"]
        subprocess.run(machines.command(number, added), check=True)
    refused = driver.run(*cluster, "testbed.data_address=127.0.1.0/24")["refused"]
    assert f"node {machines.addresses[0]} (" in refused
    assert "has the data address 127.0.1.1, which other machines cannot call; start Ray" in refused
    assert "\n" not in refused


def test_ray_brings_this_programs_files(
    machines: Machines, cluster: tuple[str, ...], alone: list[int]
) -> None:
    """What runs on the nodes is the copy, not what they may have."""
    shipper = Driver(machines)
    try:
        found = shipper.run(*cluster, "testbed.ship_code=true")
        assert (found.get("refused"), found.get("tokens")) == (None, alone)
        folders = [process.cwd() for process in machines.agents()]
        assert sum("working_dir_files" in folder for folder in folders) == 3
        other = shipper.run(*cluster)["refused"]
        assert "a program joins Ray once; measure in two programs" in other
    finally:
        shipper.close()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("testbed.num_devices=9", "the cluster has 3 nodes for testbed.num_devices=9"),
        ("testbed.nodes=[10.1.1.1]", "testbed.nodes names 10.1.1.1, which is no node"),
        ("network.link_latency_ms=1", "network.link_latency_ms=1 is emulated"),
        ("system=transformers", "system=transformers runs in one process of this host"),
        ("testbed.data_address=10.99.0.0/16", "has no address in testbed.data_address=10.99.0.0"),
        ("testbed.node_cache_gb=1e-6", "more than testbed.node_cache_gb=1e-06 allows; raise it"),
        ("testbed.address=127.0.0.1:9", "testbed.address=127.0.0.1:9 does not answer"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    driver: Driver, cluster: tuple[str, ...], typed: str, message: str, tmp_path: Path
) -> None:
    extra = [f"testbed.node_cache_dir={tmp_path}/ADDRESS"]
    refused = driver.run(*cluster, *extra, typed).get("refused", "")
    assert message in refused
    assert "\n" not in refused


def test_nodes_are_named_by_their_resources(
    machines: Machines, driver: Driver, cluster: tuple[str, ...]
) -> None:
    found = driver.run(*cluster, "testbed.nodes=['device:2','device:0']", "testbed.num_devices=2")
    places = [device["profile"] for device in found["devices"]]
    assert [place.split()[1] for place in places] == [machines.addresses[2], machines.addresses[0]]


def test_a_device_without_memory_says_so(driver: Driver, cluster: tuple[str, ...]) -> None:
    found = driver.run(*cluster, "device.memory_mb=10")
    assert found.get("status", "oom") == "oom"
    assert "memory" in (found.get("error") or found["refused"])


def test_a_killed_driver_leaves_nothing(
    machines: Machines, driver: Driver, cluster: tuple[str, ...]
) -> None:
    begun(driver, *cluster, *LONG)
    driver.process.kill()
    driver.process.wait(15)
    assert machines.await_no_devices()


def test_a_node_that_is_killed_is_named_and_others_go_on(
    machines: Machines, driver: Driver, cluster: tuple[str, ...]
) -> None:
    begun(driver, *cluster, *LONG)
    start_s = time.monotonic()
    machines.kill(2)
    found = ended(driver)
    assert time.monotonic() - start_s < 6
    assert found["status"] == "device_lost"
    assert f"rank 2 on node {machines.addresses[2]} (" in found["error"]
    assert "is lost with its node" in found["error"]
    again = driver.run(*cluster, "testbed.num_devices=2")
    assert (again.get("refused"), again["status"]) == (None, "ok")
    machines.start(2)
