"""Points over nodes: side by side or alone, in order where they are compared, again when lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tpi_bench.cluster.nodes import Node
from tpi_bench.cluster.pool import Pool, Task, fit_nodes
from tpi_bench.cluster.ray_cluster import NodeLost

A, B = Node("a", "10.0.0.1"), Node("b", "10.0.0.2")


class Fake:
    """Tasks end when the test says so: `now` are tickets that are ready. A ticket is a number."""

    def __init__(self) -> None:
        self.begun: list[tuple[Node, str]] = []
        self.lost: set[Node] = set()
        self.ready: list[int] = []
        self.most_at_once = 0
        self._open: set[int] = set()

    def begin(self, node: Node, slot: int, arguments: Sequence[Any]) -> int:
        self.begun.append((node, arguments[0]))
        self._open.add(len(self.begun) - 1)
        self.most_at_once = max(self.most_at_once, len(self._open))
        return len(self.begun) - 1

    def wait(self, tickets: Sequence[int]) -> Sequence[int]:
        chosen = [ticket for ticket in self.ready if ticket in tickets] or [min(tickets)]
        return chosen[:1]

    def result(self, node: Node, ticket: int) -> str:
        self._open.discard(ticket)
        if node in self.lost:
            raise NodeLost(node, "is lost")
        name = self.begun[ticket][1]
        if name == "bad":
            raise ValueError("bad cannot be")
        return name.upper()

    def forget(self, node: Node) -> None:
        self._open = {t for t in self._open if self.begun[t][0] != node}

    def end(self) -> None:
        self._open.clear()


def submit(pool: Pool, *names: str, group: str | None = None) -> None:
    for name in names:
        pool.submit(Task(name, (name,), group))


def test_what_measures_nothing_runs_one_a_core() -> None:
    fake = Fake()
    pool = Pool({A: 2, B: 1}, fake)
    submit(pool, "one", "two", "three", "four")
    assert [name for _, name in fake.begun] == ["one", "two", "three"]
    assert {node for node, _ in fake.begun} == {A, B}
    assert [pool.result(name) for name in ("one", "two", "three", "four")] == [
        "ONE",
        "TWO",
        "THREE",
        "FOUR",
    ]
    assert fake.most_at_once == 3
    assert pool.num_held == 0


def test_results_may_come_in_any_order() -> None:
    fake = Fake()
    pool = Pool({A: 2}, fake)
    submit(pool, "slow", "quick")
    fake.ready = [1]
    assert pool.result("quick") == "QUICK"
    assert pool.result("slow") == "SLOW"


def test_what_is_compared_is_measured_alone_on_one_node_in_its_order() -> None:
    fake = Fake()
    pool = Pool({A: 4, B: 4}, fake)
    submit(pool, "a1", "a2", group="a")
    submit(pool, "b1", "b2", group="b")
    submit(pool, "modelled")
    assert [name for _, name in fake.begun] == ["a1", "b1"]  # each node is measured
    for name in ("a1", "a2", "b1", "b2", "modelled"):
        pool.result(name)
    for group in "ab":
        mine = [(node, name) for node, name in fake.begun if name.startswith(group)]
        assert [name for _, name in mine] == [f"{group}1", f"{group}2"]
        assert len({node for node, _ in mine}) == 1
    assert {node for node, name in fake.begun if name[1:] == "1"} == {A, B}


def test_a_measured_point_waits_for_others_on_its_node_and_keeps_new_ones_off() -> None:
    fake = Fake()
    pool = Pool({A: 2}, fake)
    submit(pool, "m1")
    submit(pool, "alone", group="g")
    submit(pool, "m2")
    assert [name for _, name in fake.begun] == ["m1"]
    assert [pool.result(name) for name in ("m1", "alone", "m2")] == ["M1", "ALONE", "M2"]
    assert fake.most_at_once == 1


def test_what_a_lost_node_had_begun_runs_elsewhere_in_the_same_order() -> None:
    fake = Fake()
    pool = Pool({A: 2, B: 1}, fake)
    submit(pool, "one", "two", "three", "four")
    homes = {name: node for node, name in fake.begun}
    fake.lost = {A}
    names = ["one", "two", "three", "four"]
    assert [pool.result(name) for name in names] == [name.upper() for name in names]
    again = [name for node, name in fake.begun[3:]]
    lost = [name for name in ("one", "two", "three") if homes[name] == A]
    assert [name for name in again if name in lost] == lost
    assert all(node == B for node, _ in fake.begun[3:])


def test_without_any_node_points_fail_and_none_waits_for_ever() -> None:
    fake = Fake()
    pool = Pool({A: 1}, fake)
    fake.lost = {A}
    submit(pool, "one", "two")
    for name in ("one", "two"):
        with pytest.raises(NodeLost, match=r"node 10.0.0.1 is lost"):
            pool.result(name)


def test_a_point_that_cannot_be_fails_alone() -> None:
    pool = Pool({A: 1}, Fake())
    submit(pool, "bad", "good")
    with pytest.raises(ValueError, match="bad cannot be"):
        pool.result("bad")
    assert pool.result("good") == "GOOD"


def test_nodes_of_another_version_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert fit_nodes([A, B], lambda node: "B is older" if node is B else None) == [A]
    assert "left out: B is older" in caplog.text
    with pytest.raises(ValueError, match="no node can run points: old; old"):
        fit_nodes([A, B], lambda node: "old")
