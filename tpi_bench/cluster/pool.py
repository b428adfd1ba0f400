"""Points of a sweep over the nodes of a cluster: which runs where, and what a lost node had begun.

Points that measure nothing of a machine run one a core. Measured ones have a node to themselves,
and those of one group, which are compared, have the same node in their order. What was begun on a
node that is lost runs elsewhere.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from tpi_bench.cluster.nodes import Node
from tpi_bench.cluster.ray_cluster import NodeLost

_LOG = logging.getLogger(__name__)
_MOST_TRIES = 3


@dataclass(frozen=True)
class Task:
    """A call of a worker. `group` is None where nothing is measured."""

    name: str
    arguments: tuple[Any, ...]
    group: str | None = None
    num_lost: int = 0  # nodes that were lost with it


class Workers(Protocol):
    """What can run tasks: `ray_workers.py`, or a test's."""

    def begin(self, node: Node, slot: int, arguments: Sequence[Any]) -> Any:
        """Start a call on a slot of a node; a ticket for it."""

    def wait(self, tickets: Sequence[Any]) -> Sequence[Any]:
        """Those of the tickets that are ready, at least one."""

    def result(self, node: Node, ticket: Any) -> Any:
        """Raises NodeLost, or what the call raised."""

    def forget(self, node: Node) -> None:
        """It is lost."""

    def end(self) -> None:
        """Whatever runs."""


@dataclass
class _Place:
    """A node with so many slots; `running` tasks by slot."""

    node: Node
    num_slots: int
    running: dict[int, Task]

    @property
    def is_measuring(self) -> bool:
        return any(task.group is not None for task in self.running.values())

    def free_slot(self) -> int | None:
        free = (slot for slot in range(self.num_slots) if slot not in self.running)
        return next(free, None)


class Pool:
    """`slots` are the cores of each node."""

    def __init__(self, slots: dict[Node, int], workers: Workers) -> None:
        self._places = {node: _Place(node, max(1, count), {}) for node, count in slots.items()}
        self._workers = workers
        self._waiting: deque[Task] = deque()
        self._tickets: dict[Any, tuple[_Place, int]] = {}
        self._homes: dict[str, Node] = {}  # of groups
        self._done: dict[str, Any] = {}  # results and errors that nobody has asked for yet

    @property
    def num_slots(self) -> int:
        return sum(place.num_slots for place in self._places.values())

    @property
    def num_held(self) -> int:
        """Tasks that are waiting, running, or done and not asked for."""
        return len(self._waiting) + len(self._tickets) + len(self._done)

    def submit(self, task: Task) -> None:
        self._waiting.append(task)
        self._dispatch()

    def result(self, name: str) -> Any:
        """Wait for a task. Raises what it raised, and NodeLost where no node is left for it."""
        while name not in self._done:
            self._step()
        found = self._done.pop(name)
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """End what runs."""
        self._workers.end()

    def _step(self) -> None:
        self._dispatch()
        assert self._tickets, "nothing runs that could be waited for"
        for ticket in self._workers.wait(list(self._tickets)):
            if ticket not in self._tickets:  # its node was lost with another
                continue
            place, slot = self._tickets.pop(ticket)
            task = place.running.pop(slot)
            try:
                self._done[task.name] = self._workers.result(place.node, ticket)
            except NodeLost as error:
                self._lose(place, task, error)
            except Exception as error:
                self._done[task.name] = error

    def _lose(self, place: _Place, task: Task, error: NodeLost) -> None:
        """Everything that the node had begun is begun again elsewhere, in the same order."""
        _LOG.warning("%s; its points run elsewhere", error)
        self._workers.forget(place.node)
        self._places.pop(place.node, None)
        lost = [task, *place.running.values()]
        self._tickets = {k: v for k, v in self._tickets.items() if v[0] is not place}
        self._homes = {group: node for group, node in self._homes.items() if node != place.node}
        for each in reversed(lost):
            if each.num_lost + 1 >= _MOST_TRIES or not self._places:
                self._done[each.name] = error
            else:
                again = Task(each.name, each.arguments, each.group, each.num_lost + 1)
                self._waiting.appendleft(again)
        if not self._places:
            self._done |= {each.name: error for each in self._waiting}
            self._waiting.clear()

    def _dispatch(self) -> None:
        """Begin what can be begun, the first first. Who waits for a node keeps others off it."""
        reserved: set[Node] = set()
        still: deque[Task] = deque()
        for task in self._waiting:
            place = self._room_for(task, reserved)
            if place is None:
                still.append(task)
                continue
            slot = place.free_slot()
            assert slot is not None
            place.running[slot] = task
            ticket = self._workers.begin(place.node, slot, task.arguments)
            self._tickets[ticket] = (place, slot)
        self._waiting = still

    def _room_for(self, task: Task, reserved: set[Node]) -> _Place | None:
        if task.group is None:
            free = [
                place
                for place in self._places.values()
                if place.node not in reserved and not place.is_measuring
                if place.free_slot() is not None
            ]
            return min(free, key=lambda p: len(p.running) / p.num_slots, default=None)
        home = self._places[self._home_of(task.group)]
        if home.node in reserved or home.running:
            reserved.add(home.node)
            return None
        return home

    def _home_of(self, group: str) -> Node:
        """The node with the fewest groups, from a group's first point on."""
        if group not in self._homes:
            counts = {node: list(self._homes.values()).count(node) for node in self._places}
            self._homes[group] = min(counts, key=lambda node: counts[node])
        return self._homes[group]


NodeCheck = Callable[[Node], str | None]
_MOST_CHECKS = 32  # at once


def fit_nodes(nodes: Sequence[Node], trouble_of: NodeCheck) -> list[Node]:
    """Those without trouble; of the others it is told. Raises ValueError where none is left."""
    fit, said = [], []
    with ThreadPoolExecutor(_MOST_CHECKS) as threads:
        troubles = list(threads.map(trouble_of, nodes))
    for node, trouble in zip(nodes, troubles, strict=True):
        if trouble is None:
            fit.append(node)
        else:
            _LOG.warning("left out: %s", trouble)
            said.append(trouble)
    if not fit:
        raise ValueError(f"no node can run points: {'; '.join(said) or 'the cluster has none'}")
    return fit
