"""Which machines a job's devices are on, and what is refused, in one line that names the node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tpi_bench.cluster.nodes import (
    Node,
    NodeFacts,
    Place,
    chosen_nodes,
    data_host,
    refuse_too_little_memory,
    refuse_unfit_places,
    refuse_without_tls,
    share_machines,
    threads_of,
)

NODES = [Node(f"id{n}", f"10.0.0.{n}", (f"device:laptop{n}",)) for n in (1, 2, 3)]
FACTS = NodeFacts(
    host="laptop",
    machine="one",
    network="one",
    cores=4,
    addresses=("127.0.0.1", "10.0.0.1", "192.168.2.7"),
    code="c0de",
    commit="1234567890abcdef",
    python="3.11.7",
    torch_version="2.13.0+cpu",
    free_memory_bytes=8_000_000_000,
)


def place(number: int, **changes: object) -> Place:
    node = NODES[number - 1]
    own = {"machine": f"machine{number}", "network": f"network{number}"}
    facts = replace(FACTS, host=f"laptop{number}", **(own | changes))
    return Place(node, facts, node.address)


def test_the_first_nodes_are_taken_or_those_that_are_named_in_their_order() -> None:
    assert chosen_nodes(NODES, None, 2, share=False) == NODES[:2]
    named = chosen_nodes(NODES, ["10.0.0.3", "device:laptop1"], 2, share=False)
    assert named == [NODES[2], NODES[0]]
    assert chosen_nodes(NODES, ["10.0.0.3", "10.0.0.1"], 1, share=False) == [NODES[2]]


def test_nodes_are_shared_in_turns_where_that_is_asked_for() -> None:
    assert chosen_nodes(NODES[:2], None, 3, share=True) == [NODES[0], NODES[1], NODES[0]]
    assert chosen_nodes(NODES, ["10.0.0.2"], 2, share=True) == [NODES[1]] * 2


@pytest.mark.parametrize(
    ("known", "asked", "count", "message"),
    [
        (NODES[:1], None, 2, r"the cluster has 1 node for testbed.num_devices=2; start Ray on"),
        (NODES, ["10.0.0.2"], 2, r"testbed.nodes=\['10.0.0.2'\] has 1 node for testbed.num_dev"),
        (NODES, ["10.0.0.9"], 1, r"names 10.0.0.9, which is no node; there are 10.0.0.1, 10.0"),
        (NODES, ["10.0.0.1", "device:laptop1"], 2, r"has 10.0.0.1 twice; name each node once"),
        ([], None, 1, r"the cluster has 0 nodes for testbed.num_devices=1"),
    ],
)
def test_what_there_is_not_is_refused(
    known: list[Node], asked: list[str] | None, count: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        chosen_nodes(known, asked, count, share=False)
    assert "\n" not in str(error.value)


def test_a_resource_that_several_nodes_have_names_none() -> None:
    twins = [Node("a", "10.0.0.1", ("device:x",)), Node("b", "10.0.0.2", ("device:x",))]
    with pytest.raises(ValueError, match=r"which several nodes are: 10.0.0.1, 10.0.0.2"):
        chosen_nodes(twins, ["device:x"], 1, share=False)


def test_the_data_address_is_the_one_in_the_network() -> None:
    assert data_host(NODES[0], FACTS, None) == "10.0.0.1"
    assert data_host(NODES[0], FACTS, "192.168.2.0/24") == "192.168.2.7"
    with pytest.raises(ValueError, match=r"node 10.0.0.1 has no address in testbed.data_ad"):
        data_host(NODES[0], FACTS, "10.9.0.0/16")
    with pytest.raises(ValueError, match=r"testbed.data_address=eth1 is no network; give one as"):
        data_host(NODES[0], FACTS, "eth1")


def test_equal_nodes_are_accepted_whatever_build_of_torch_they_have() -> None:
    refuse_unfit_places([place(1), place(2, torch_version="2.13.0")], FACTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "other"}, "node 10.0.0.2 (laptop2) has tpi_bench of 1234567890abcdef"),
        ({"torch_version": "2.12.1"}, "node 10.0.0.2 (laptop2) has torch 2.12.1, and this host 2."),
    ],
)
def test_another_version_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        refuse_unfit_places([place(1), place(2, **changes)], FACTS)
    assert str(error.value).startswith(message)


def test_addresses_that_others_cannot_call_are_refused() -> None:
    here = replace(place(2), host="127.0.1.1")
    with pytest.raises(ValueError, match=r"laptop2.*127.0.1.1, which other machines cannot call"):
        refuse_unfit_places([place(1), here], FACTS)
    container = place(2, machine="machine1")
    with pytest.raises(ValueError, match=r"127.0.0.1, which other machines cannot call"):
        refuse_unfit_places([replace(place(1), host="127.0.0.1"), container], FACTS)
    one = replace(place(2), host="127.0.0.2", facts=place(1).facts)
    refuse_unfit_places([replace(place(1), host="127.0.0.1"), one], FACTS)  # all on one machine
    with pytest.raises(ValueError, match=r"have the same data address 10.0.0.1"):
        refuse_unfit_places([place(1), replace(place(2), host="10.0.0.1")], FACTS)


def test_a_node_without_the_memory_for_its_devices_is_refused() -> None:
    places = [place(1), place(2, free_memory_bytes=3_000_000_000)]
    refuse_too_little_memory(places, [5_000_000_000, 3_000_000_000])
    with pytest.raises(ValueError, match=r"laptop2\) has 3 GB of memory free, and its share tak"):
        refuse_too_little_memory(places, [5_000_000_000, 3_100_000_000])
    with pytest.raises(ValueError, match=r"its share takes 9 GB"):
        refuse_too_little_memory([places[0]] * 2, [4_500_000_000] * 2)


def test_a_node_that_cannot_encrypt_is_refused() -> None:
    refuse_without_tls([place(1), place(2)], FACTS)
    with pytest.raises(ValueError, match=r"10.0.0.2 \(laptop2\) lacks the package cryptography"):
        refuse_without_tls([place(1), place(2, can_encrypt=False)], FACTS)
    with pytest.raises(ValueError, match="this host lacks the package cryptography"):
        refuse_without_tls([place(1)], replace(FACTS, can_encrypt=False))


def test_cores_are_divided_over_the_devices_of_a_machine() -> None:
    alone, shared = [place(1), place(2)], [place(1), place(1), place(2)]
    assert [threads_of(alone, rank) for rank in range(2)] == [4, 4]
    assert [threads_of(shared, rank) for rank in range(3)] == [2, 2, 4]
    assert share_machines(alone) == {}
    assert share_machines(shared) == {"laptop1": 2}
