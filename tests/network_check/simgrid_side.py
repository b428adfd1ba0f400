"""SimGrid's side, in a process of its own under the Python that has SimGrid (one engine a process):

    python3 -m tests.network_check.simgrid_side CASE ASSUMPTION

prints `Times` as JSON. Every rank is a SimGrid actor; what happens to a message is said in
`simgrid_networks.py`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import simgrid

from tests.network_check.cases import Case, all_cases
from tests.network_check.programs import run_rank
from tests.network_check.simgrid_networks import ASSUMPTIONS, Network, new_engine
from tests.network_check.stand_ins import Sizes, stand_in_for_torch
from tests.network_check.times import Message, Times

T = TypeVar("T")


@dataclass
class Box:
    """Messages from one rank to another, one semaphore each, in the order of sending."""

    num_sent: int = 0
    num_received: int = 0
    is_there: defaultdict[int, Any] = field(
        default_factory=lambda: defaultdict(lambda: simgrid.Semaphore(0))
    )
    sizes: list[int] = field(default_factory=list)


class SimGridRuntime:
    """One rank: the verbs of `contract.runtime.Runtime` that programs of cases use."""

    def __init__(self, rank: int, case: Case, network: Network, boxes: Boxes, log: Log) -> None:
        self.rank, self.world_size = rank, case.world_size
        self._compute_ns = case.compute_ns
        self._network = network
        self._boxes = boxes
        self._log = log

    def now(self) -> int:
        return round(simgrid.Engine.clock * 1e9)

    def sleep(self, ns: int) -> None:
        if ns:
            simgrid.this_actor.sleep_for(ns / 1e9)

    def send(self, dst: int, buffer: Sizes) -> None:
        box = self._boxes[self.rank, dst]
        index, box.num_sent = box.num_sent, box.num_sent + 1
        box.sizes.append(buffer.nbytes)

        def arrived() -> None:
            self._log.append(Message(self.rank, dst, buffer.nbytes, simgrid.Engine.clock))
            box.is_there[index].release()

        self._network.carry(self.rank, dst, buffer.nbytes, arrived)

    def recv(self, src: int, out: Sizes) -> None:
        box = self._boxes[src, self.rank]
        index, box.num_received = box.num_received, box.num_received + 1
        box.is_there[index].acquire()
        assert box.sizes[index] == out.nbytes

    def compute(self, key: tuple[Any, ...], fn: Callable[[], T]) -> T:
        self.sleep(self._compute_ns.get(str(key[0]), 0))
        return fn()


Boxes = defaultdict[tuple[int, int], Box]
Log = list[Message]


def run_simgrid(case: Case, assumption: str) -> Times:
    """Raises RuntimeError when SimGrid came to an end before all ranks did."""
    engine = new_engine()
    network = ASSUMPTIONS[assumption](case.network, case.world_size)
    boxes: Boxes = defaultdict(Box)
    log: Log = []
    ends_s: dict[int, float] = {}

    def rank_program(rank: int) -> None:
        runtime = SimGridRuntime(rank, case, network, boxes, log)
        run_rank(runtime, case, Sizes)
        ends_s[rank] = simgrid.Engine.clock

    for rank, host in enumerate(network.hosts):
        simgrid.Actor.create(f"rank {rank}", host, rank_program, rank)
    engine.run()
    if len(ends_s) < case.world_size:
        raise RuntimeError(f"{case.name}, {assumption}: only ranks {sorted(ends_s)} came to an end")
    return Times([ends_s[rank] for rank in range(case.world_size)], log)


if __name__ == "__main__":
    stand_in_for_torch()
    print(run_simgrid(all_cases()[sys.argv[1]], sys.argv[2]).to_json())
