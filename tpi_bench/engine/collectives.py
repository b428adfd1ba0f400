"""Allreduce over a runtime, four ways. Every rank calls the same function with its partial sum.

All reduce in a fixed order, so two runs give the same bits whatever arrives first. The sum is
returned; `partial` may be overwritten.

A new collective is one function here and one record in COLLECTIVES at the end of the file.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All there is to say of one allreduce. The formulas are for two devices or more.

    `latencies`: one-way latencies on its critical path. `payloads`: how often the busiest port
    passes what one device has to add. `way_back`: the latencies of the last of them, from a hub
    that has the sum to the others; None where there is no hub. `received`: how many payloads a
    device takes in before it adds them.
    """

    name: str
    run: Callable[[Runtime, torch.Tensor], torch.Tensor]
    latencies: Callable[[int], int]
    payloads: Callable[[int], float]
    way_back: Callable[[int], int] | None = None
    received: Callable[[int], int] = lambda num_devices: 1

    def num_steps(self, num_devices: int) -> int:
        """One-way latencies of one allreduce (TPI-LLM, section 3.2 and appendix).

        With the paper's 4 hops of latency tau one way: star 8 tau, tree 16 tau, ring of 8 devices
        56 tau.
        """
        return self.latencies(num_devices) if num_devices > 1 else 0

    def num_receive_buffers(self, num_devices: int) -> int:
        """Payloads that a device has room for beside its own."""
        return self.received(num_devices) if num_devices > 1 else 0

    def time_s(
        self, num_devices: int, *, one_way_s: float, nbytes: int, bandwidth_bps: float
    ) -> float:
        """Closed form of one allreduce of `nbytes` a device over links of so many bits a second.

        The paper's form (section 3.2) is the latency term alone: it leaves out that the payloads of
        the N - 1 workers share the master's own link. Bits flow through switches at once;
        `bandwidth_bps` 0 is unlimited.
        """
        if num_devices == 1:
            return 0.0
        transfer_s = nbytes * 8 / bandwidth_bps if bandwidth_bps else 0.0
        return self.num_steps(num_devices) * one_way_s + self.payloads(num_devices) * transfer_s


def star(rt: Runtime, partial: torch.Tensor) -> torch.Tensor:
    """Workers push to the master, which sums in rank order and sends the sum to each."""
    if rt.rank == 0:
        _gather_sum(rt, partial, range(1, rt.world_size))
        for worker in range(1, rt.world_size):
            rt.send(worker, partial)
    else:
        rt.send(0, partial)
        rt.recv(0, partial)
    return partial


def tree(rt: Runtime, partial: torch.Tensor) -> torch.Tensor:
    """Depth 2: leaves to the head of their group, heads to the master, and back the same way."""
    groups = tree_groups(rt.world_size)
    if rt.rank == 0:
        heads = [group[0] for group in groups]
        _gather_sum(rt, partial, heads)
        for head in heads:
            rt.send(head, partial)
        return partial
    group = next(group for group in groups if rt.rank in group)
    if rt.rank == group[0]:
        _gather_sum(rt, partial, group[1:])
        rt.send(0, partial)
        rt.recv(0, partial)
        for leaf in group[1:]:
            rt.send(leaf, partial)
    else:
        rt.send(group[0], partial)
        rt.recv(group[0], partial)
    return partial


def tree_groups(world_size: int) -> list[list[int]]:
    """Workers in about sqrt(N - 1) consecutive groups; the first of each is its head."""
    workers = list(range(1, world_size))
    num_groups = max(1, round(math.sqrt(len(workers)))) if workers else 0
    cuts = [len(workers) * i // num_groups for i in range(num_groups + 1)] if num_groups else []
    return [workers[a:b] for a, b in itertools.pairwise(cuts)]


def _tree_payloads(num_devices: int) -> float:
    """There: each head has its leaves first, the master takes heads as they come. And back."""
    leaves = [len(group) - 1 for group in tree_groups(num_devices)]
    there = 0
    for ready in sorted(leaves):
        there = max(there, ready) + 1
    return there + max(place + own for place, own in enumerate(leaves, start=1))


def ring(rt: Runtime, partial: torch.Tensor) -> torch.Tensor:
    """Reduce-scatter then all-gather, N - 1 steps each; chunk c is summed along one fixed path."""
    size, rank = rt.world_size, rt.rank
    following, previous = (rank + 1) % size, (rank - 1) % size
    chunks = partial.view(-1).tensor_split(size)
    for step in range(size - 1):
        outgoing = chunks[(rank - step) % size]
        incoming = chunks[(rank - step - 1) % size]
        received = incoming.new_empty(incoming.shape)
        _exchange(rt, following, outgoing, previous, received)
        rt.compute(
            ("reduce", 1, incoming.numel(), incoming.dtype),
            functools.partial(incoming.add_, received),
        )
    for step in range(size - 1):
        outgoing = chunks[(rank + 1 - step) % size]
        _exchange(rt, following, outgoing, previous, chunks[(rank - step) % size])
    return partial


def direct(rt: Runtime, partial: torch.Tensor) -> torch.Tensor:
    """Each device sends its partial to every other; all sum in rank order. One step.

    Everyone starts with the next rank, so that no two meet at one receiver's down-link.
    """
    size = rt.world_size
    for step in range(1, size):
        rt.send((rt.rank + step) % size, partial)
    parts = [
        partial if peer == rt.rank else partial.new_empty(partial.shape) for peer in range(size)
    ]
    for step in range(1, size):
        peer = (rt.rank - step) % size
        rt.recv(peer, parts[peer])

    def in_rank_order() -> torch.Tensor:
        total = parts[0] + parts[1] if len(parts) > 1 else parts[0]
        for part in parts[2:]:
            total += part
        return total

    return rt.compute(("reduce", len(parts) - 1, partial.numel(), partial.dtype), in_rank_order)


def _gather_sum(rt: Runtime, total: torch.Tensor, sources: range | list[int]) -> None:
    received = total.new_empty(total.shape)
    key = ("reduce", 1, total.numel(), total.dtype)
    for source in sources:
        rt.recv(source, received)
        rt.compute(key, functools.partial(total.add_, received))


def _exchange(
    rt: Runtime, dst: int, outgoing: torch.Tensor, src: int, incoming: torch.Tensor
) -> None:
    """Send one chunk and receive another; empty chunks (fewer values than devices) are not sent."""
    if outgoing.numel():
        rt.send(dst, outgoing)
    if incoming.numel():
        rt.recv(src, incoming)


def collective_by_name(name: str) -> Collective:
    """The collective called `name`. Raises ValueError that lists the known ones."""
    if name not in COLLECTIVES:
        raise ValueError(
            f"system.collective={name} is unknown; choose one of {', '.join(COLLECTIVES)}"
        )
    return COLLECTIVES[name]


_ALL = (
    Collective(
        name="star",
        run=star,
        latencies=lambda n: 2,
        payloads=lambda n: 2 * (n - 1),
        way_back=lambda n: 1,
    ),
    Collective(
        name="tree",
        run=tree,
        latencies=lambda n: 4 if n > 2 else 2,
        payloads=_tree_payloads,
        way_back=lambda n: 2 if n > 2 else 1,
    ),
    Collective(
        name="ring",
        run=ring,
        latencies=lambda n: 2 * (n - 1),
        payloads=lambda n: 2 * (n - 1) / n,
    ),
    Collective(
        name="direct",
        run=direct,
        latencies=lambda n: 1,
        payloads=lambda n: n - 1,
        received=lambda n: n - 1,
    ),
)
COLLECTIVES = {collective.name: collective for collective in _ALL}
