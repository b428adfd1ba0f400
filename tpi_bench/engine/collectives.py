"""Allreduce over a runtime, four ways. Every rank calls the same function with its partial sum.

All reduce in a fixed order, so two runs give the same bits whatever arrives first. The sum is
returned; `partial` may be overwritten.

Payloads travel as the `wire` says. Where it packs them, who adds for others adds its own part as it
is, packs the sum once and goes on with what the others will unpack; in `direct` everyone adds
everyone's packed part, its own too. So all ranks have the same bits.

A new collective is one function here and one record in COLLECTIVES at the end of the file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tpi_bench.engine.wire import AS_COMPUTED, Wire

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime


class Allreduce(Protocol):
    """What each rank calls with its partial sum."""

    def __call__(
        self, rt: Runtime, partial: torch.Tensor, wire: Wire = AS_COMPUTED
    ) -> torch.Tensor: ...


_FORMULAS = ("latencies", "payloads", "between", "sent", "way_back", "received", "messages")


def _not_given(num_devices: int) -> int:
    """Stands for a formula that a record lacks: nothing is ever taken from another collective."""
    raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All there is to say of one allreduce. The formulas are for two devices or more; none has a
    default, and a record that lacks one is refused by name.

    `latencies`: one-way latencies on its critical path. `payloads`: how often the busiest port
    passes what one device has to add. `between`: how many of these pass one after another from one
    sum to the next at least, where allreduces follow each other and nothing else takes time: the
    way back of one overlaps the way there of the next, but for the device that is served last.
    `sent`: how many all devices send together. `way_back`: the latencies of the last of them, from
    a hub that has the sum to the others; None where there is no hub. `received`: how many payloads
    a device takes in before it adds them. `messages`: how many packed ones it has at once, its own
    included: one place will do where each goes out before the next comes in.

    `to_hub` leaves the way back out, so that the master alone has the sum, as of a pass's last one,
    which nobody else needs. Without one, `run` ends a pass too.
    """

    name: str
    run: Allreduce
    latencies: Callable[[int], int] = _not_given
    payloads: Callable[[int], float] = _not_given
    between: Callable[[int], float] = _not_given
    sent: Callable[[int], int] = _not_given
    way_back: Callable[[int], int] | None = _not_given
    received: Callable[[int], int] = _not_given
    messages: Callable[[int], int] = _not_given
    to_hub: Allreduce | None = None

    def __post_init__(self) -> None:
        missing = [name for name, value in vars(self).items() if value is _not_given]
        if missing:
            raise ValueError(
                f"the collective {self.name} has no {', '.join(missing)}; its record in "
                "tpi_bench/engine/collectives.py must give every formula (way_back=None where "
                "there is no hub)"
            )
        for name in _FORMULAS:
            formula = getattr(self, name)
            if formula is None and name == "way_back":
                continue
            try:
                formula(4)
            except TypeError as error:
                raise ValueError(
                    f"the collective {self.name}: {name} must be a function of the number of "
                    f"devices ({error})"
                ) from None

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


def star(rt: Runtime, partial: torch.Tensor, wire: Wire = AS_COMPUTED) -> torch.Tensor:
    """Workers push to the master, which sums in rank order and sends the sum to each."""
    if rt.rank == 0:
        workers = range(1, rt.world_size)
        _gather_sum(rt, partial, workers, wire)
        wire.broadcast(rt, partial, workers)
    else:
        rt.send(0, wire.pack(rt, partial))
        wire.receive(rt, 0, partial)
    return partial


def _star_to_hub(rt: Runtime, partial: torch.Tensor, wire: Wire = AS_COMPUTED) -> torch.Tensor:
    """The first half of `star`."""
    if rt.rank == 0:
        _gather_sum(rt, partial, range(1, rt.world_size), wire)
    else:
        rt.send(0, wire.pack(rt, partial))
    return partial


def tree(rt: Runtime, partial: torch.Tensor, wire: Wire = AS_COMPUTED) -> torch.Tensor:
    """Depth 2: leaves to the head of their group, heads to the master, and back the same way."""
    groups = tree_groups(rt.world_size)
    if rt.rank == 0:
        heads = [group[0] for group in groups]
        _gather_sum(rt, partial, heads, wire)
        wire.broadcast(rt, partial, heads)
        return partial
    group = next(group for group in groups if rt.rank in group)
    if rt.rank == group[0]:
        _gather_sum(rt, partial, group[1:], wire)
        rt.send(0, wire.pack(rt, partial))
        wire.receive(rt, 0, partial, onward=group[1:])
    else:
        rt.send(group[0], wire.pack(rt, partial))
        wire.receive(rt, group[0], partial)
    return partial


def _tree_to_hub(rt: Runtime, partial: torch.Tensor, wire: Wire = AS_COMPUTED) -> torch.Tensor:
    """The first half of `tree`."""
    groups = tree_groups(rt.world_size)
    if rt.rank == 0:
        _gather_sum(rt, partial, [group[0] for group in groups], wire)
        return partial
    group = next(group for group in groups if rt.rank in group)
    if rt.rank == group[0]:
        _gather_sum(rt, partial, group[1:], wire)
        rt.send(0, wire.pack(rt, partial))
    else:
        rt.send(group[0], wire.pack(rt, partial))
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


def _tree_between(num_devices: int) -> float:
    """From the master's sum to the device that gets it last, and its part back to the master.

    The heads have it in turns, the leaves of each after it. A leaf's part passes its head.
    """
    leaves = [len(group) - 1 for group in tree_groups(num_devices)]
    return max(place + own + (2 if own else 1) for place, own in enumerate(leaves, start=1))


def ring(rt: Runtime, partial: torch.Tensor, wire: Wire = AS_COMPUTED) -> torch.Tensor:
    """Reduce-scatter then all-gather, N - 1 steps each; chunk c is summed along one fixed path.

    A chunk's last sum is packed once, and its bytes go round; each rank passes them on before it
    unpacks them. Empty chunks (fewer values or groups than devices) are not sent.
    """
    size, rank = rt.world_size, rt.rank
    following, previous = (rank + 1) % size, (rank - 1) % size
    chunks = _chunks(partial.view(-1), size, wire.group)
    for step in range(size - 1):
        outgoing = chunks[(rank - step) % size]
        incoming = chunks[(rank - step - 1) % size]
        if outgoing.numel():
            rt.send(following, wire.pack(rt, outgoing))
        received = wire.room(incoming)
        if incoming.numel():
            rt.recv(previous, received)
        wire.add(rt, received, incoming)
    chunk = chunks[(rank + 1) % size]
    message = wire.pack(rt, chunk)
    for step in range(size - 1):
        if chunk.numel():
            rt.send(following, message)
        wire.unpack(rt, message, chunk)
        chunk = chunks[(rank - step) % size]
        message = wire.landing(chunk)
        if chunk.numel():
            rt.recv(previous, message)
    wire.unpack(rt, message, chunk)
    return partial


def _chunks(values: torch.Tensor, num_chunks: int, group: int) -> Sequence[torch.Tensor]:
    """Flat `values` in parts as even as can be, cut between groups."""
    if group == 1:
        return values.tensor_split(num_chunks)
    num_groups = -(-values.numel() // group)
    base, over = divmod(num_groups, num_chunks)
    ends = [group * (base * i + min(i, over)) for i in range(1, num_chunks)]
    return values.tensor_split([min(end, values.numel()) for end in ends])


def direct(rt: Runtime, partial: torch.Tensor, wire: Wire = AS_COMPUTED) -> torch.Tensor:
    """Each device sends its partial to every other; all sum in rank order. One step.

    Everyone starts with the next rank, so that no two meet at one receiver's down-link.
    """
    size, rank = rt.world_size, rt.rank
    own = wire.pack(rt, partial, rank)
    for step in range(1, size):
        rt.send((rank + step) % size, own)
    parts = [own if peer == rank else wire.room(partial, peer) for peer in range(size)]
    for step in range(1, size):
        peer = (rank - step) % size
        rt.recv(peer, parts[peer])
    return wire.add_up(rt, parts, partial)


def _gather_sum(rt: Runtime, total: torch.Tensor, sources: Sequence[int], wire: Wire) -> None:
    if not sources:
        return
    received = wire.room(total)
    for source in sources:
        rt.recv(source, received)
        wire.add(rt, received, total)


def collective_by_name(name: str) -> Collective:
    """The collective called `name`. Raises ValueError that lists the known ones."""
    if name not in COLLECTIVES:
        raise ValueError(
            f"system.collective={name} is unknown; choose one of {', '.join(COLLECTIVES)}"
        )
    return COLLECTIVES[name]


def by_name(records: Sequence[Collective]) -> dict[str, Collective]:
    """In their order, which is that of figures. Raises ValueError where two have one name."""
    found = {record.name: record for record in records}
    twice = [name for name in found if [record.name for record in records].count(name) > 1]
    if twice:
        raise ValueError(f"there are two collectives called {twice[0]}; each needs its own name")
    return found


_ALL = (
    Collective(
        name="star",
        run=star,
        latencies=lambda n: 2,
        payloads=lambda n: 2 * (n - 1),
        between=lambda n: n,
        sent=lambda n: 2 * (n - 1),
        way_back=lambda n: 1,
        received=lambda n: 1,
        messages=lambda n: 1,
        to_hub=_star_to_hub,
    ),
    Collective(
        name="tree",
        run=tree,
        latencies=lambda n: 4 if n > 2 else 2,
        payloads=_tree_payloads,
        between=_tree_between,
        sent=lambda n: 2 * (n - 1),
        way_back=lambda n: 2 if n > 2 else 1,
        received=lambda n: 1,
        messages=lambda n: 1,
        to_hub=_tree_to_hub,
    ),
    Collective(
        name="ring",
        run=ring,
        latencies=lambda n: 2 * (n - 1),
        payloads=lambda n: 2 * (n - 1) / n,
        between=lambda n: 2 * (n - 1) / n,
        sent=lambda n: 2 * (n - 1),
        way_back=None,
        received=lambda n: 1,
        messages=lambda n: 1,
    ),
    Collective(
        name="direct",
        run=direct,
        latencies=lambda n: 1,
        payloads=lambda n: n - 1,
        between=lambda n: n - 1,
        sent=lambda n: n * (n - 1),
        way_back=None,
        received=lambda n: n - 1,
        messages=lambda n: n,
    ),
)
COLLECTIVES = by_name(_ALL)
COLLECTIVE_NAMES = tuple(COLLECTIVES)
