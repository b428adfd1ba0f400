"""Allreduce over a runtime, four ways. Every rank calls the same function with its partial sum.

All reduce in a fixed order, so two runs give the same bits whatever arrives first. The sum is
returned; `partial` may be overwritten. Steps (one-way latencies on the critical path, N devices):
star 2 (TPI-LLM, section 3.2), tree 4, ring 2 (N - 1), direct 1; `theory.py` holds the formulas.

A new collective is one function here and its entry in COLLECTIVES.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from tpi_bench.plans import tree_groups

if TYPE_CHECKING:
    import torch

    from tpi_bench.runtime import Runtime

Allreduce = Callable[["Runtime", "torch.Tensor"], "torch.Tensor"]


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


COLLECTIVES: dict[str, Allreduce] = {"star": star, "tree": tree, "ring": ring, "direct": direct}


def num_receive_buffers(name: str, world_size: int) -> int:
    """Payloads that a device receives into before it adds them up."""
    return world_size - 1 if name == "direct" else min(1, world_size - 1)


def allreduce_by_name(name: str) -> Allreduce:
    """The collective called `name`. Raises ValueError that lists the known ones."""
    if name not in COLLECTIVES:
        raise ValueError(
            f"system.collective={name} is unknown; choose one of {', '.join(COLLECTIVES)}"
        )
    return COLLECTIVES[name]


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
