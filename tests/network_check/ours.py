"""Our side: a case's rank programs on the virtual runtime, with tensors that hold no data.

Our network passes whole messages. `packet_bytes` cuts each into packets, which follow each other:
what that changes is what whole messages are to blame for.
"""

from __future__ import annotations

import torch

from tests.helpers.virtual import IDEAL, Scripted, world_of
from tests.network_check.cases import Case
from tests.network_check.programs import run_rank
from tests.network_check.times import Message, Times
from tpi_bench.virtual.network import Deliver, Fabric


class RecordingFabric:
    """Carries messages as the fabric does, whole or in packets, and notes when each has arrived."""

    def __init__(self, fabric: Fabric, packet_bytes: int | None = None) -> None:
        self._fabric = fabric
        self._packet_bytes = packet_bytes
        self.messages: list[Message] = []

    def send(self, src: int, dst: int, nbytes: int, time_ns: int, deliver: Deliver) -> None:
        def noted(arrival_ns: int) -> None:
            self.messages.append(Message(src, dst, nbytes, arrival_ns / 1e9))
            deliver(arrival_ns)

        whole, last = divmod(nbytes, self._packet_bytes or nbytes)
        sizes = [self._packet_bytes or nbytes] * whole + [last] * (last > 0)
        for size in sizes[:-1]:
            self._fabric.send(src, dst, size, time_ns, lambda arrival_ns: None)
        self._fabric.send(src, dst, sizes[-1], time_ns, noted)


def run_ours(case: Case, packet_bytes: int | None = None) -> Times:
    world = world_of(
        *[IDEAL] * case.world_size, network=case.network, costs=Scripted(**case.compute_ns)
    )
    fabric = RecordingFabric(world.fabric, packet_bytes)
    world.fabric = fabric  # type: ignore[assignment]

    def empty(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, device="meta")

    with torch.device("meta"):
        ends_ns = world.run(lambda rt: run_rank(rt, case, empty))
    return Times([ns / 1e9 for ns in ends_ns], fabric.messages)
