"""A rank's clock runs ahead of the world's: what others notice still happens in its order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.virtual import IDEAL, MS, PAPER, Scripted, no_work, world_of
from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.roofline import Operator, Work
from tpi_bench.contract.runtime import Key
from tpi_bench.virtual.runtime import VirtualRuntime
from tpi_bench.virtual.world import Shared

ONE_DISK = Shared(disk=True)
READER = replace(IDEAL, disk_gb_per_s=1, disk_latency_us=0)


class Multiplying(Scripted):
    """Scripted computations that memory does not hold up."""

    def work(self, key: Key) -> Work:
        return (Operator(flops=MS, nbytes=0),)


def block_of(nbytes: int) -> BlockFile:
    return BlockFile(path="block", kind="ffn", layer=0, data_offset=0, nbytes=nbytes, tensors={})


def read(rt: VirtualRuntime, nbytes: int) -> None:
    block = block_of(nbytes)
    rt.read(block, torch.empty(nbytes, dtype=torch.uint8, device="meta")).wait()


def test_who_asks_a_shared_disk_first_is_served_first() -> None:
    """Rank 0 is run first, but asks after 10 ms; a read of 2 ms of rank 1 is long over then."""
    world = world_of(READER, READER, shared=ONE_DISK)

    def program(rt: VirtualRuntime) -> int:
        if rt.rank == 0:
            rt.sleep(10 * MS)
        read(rt, 2 * MS)
        return rt.now()

    assert world.run(program) == [12 * MS, 2 * MS]


def test_a_mapped_file_is_read_from_a_shared_disk_in_its_turn() -> None:
    world = world_of(READER, READER, shared=ONE_DISK)
    size = 2 * MS  # bytes, one a ns
    block = block_of(size)

    def program(rt: VirtualRuntime) -> int:
        if rt.rank == 1:
            read(rt, size)
            return rt.now()
        rt.sleep(10 * MS)
        with torch.device("meta"):
            rt.map(block, size)
        rt.compute(("other",), no_work)
        return rt.now()

    assert world.run(program) == [12 * MS, 2 * MS]


def test_a_shared_disk_is_slower_only_while_others_compute() -> None:
    """Rank 0 computes from 5 to 10 ms, when the disk gives half. Rank 1 reads for 5 ms of 1, then
    for 2 ms of a half: 6 MB by 7 ms. Then 1.5 MB until 10 ms, and the rest of 4 MB in 2.5 ms.
    """
    device = replace(READER, disk_computing_gb_per_s=0.5)
    world = world_of(device, device, costs=Scripted(work=5 * MS), shared=ONE_DISK)

    def program(rt: VirtualRuntime) -> list[int]:
        times = []
        for nbytes in (6 * MS, 4 * MS) * rt.rank:
            read(rt, nbytes)
            times.append(rt.now())
        if rt.rank == 0:
            rt.sleep(5 * MS)
            rt.compute(("work",), no_work)
            times.append(rt.now())
        return times

    assert world.run(program) == [[10 * MS], [7 * MS, 12_500_000]]


def test_a_shared_disk_may_give_more_to_two() -> None:
    """Rank 1 has 4 of its 10 MB when rank 0 asks for 10 too, and the rest at twice the rate. Then
    it is rank 0's turn, alone.
    """
    device = replace(READER, disk_shared_gb_per_s=2)
    world = world_of(device, device, shared=ONE_DISK)

    def program(rt: VirtualRuntime) -> int:
        rt.sleep(4 * MS * (1 - rt.rank))
        read(rt, 10 * MS)
        return rt.now()

    assert world.run(program) == [17 * MS, 7 * MS]


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_read_that_is_over_is_not_waited_for(is_shared: bool) -> None:
    world = world_of(READER, shared=Shared(disk=is_shared))

    def program(rt: VirtualRuntime) -> int:
        block = block_of(2 * MS)
        handle = rt.read(block, torch.empty(block.nbytes, dtype=torch.uint8, device="meta"))
        rt.sleep(5 * MS)
        handle.wait()
        return rt.now()

    assert world.run(program) == [5 * MS]


def test_where_memory_is_shared_a_computation_begins_behind_what_python_takes() -> None:
    device = replace(IDEAL, step_overhead_us=20, peak_gflops=1)
    costs, memory = Multiplying(work=MS), Shared(memory=True)
    world = world_of(device, device, costs=costs, shared=memory)

    def program(rt: VirtualRuntime) -> int:
        rt.compute(("work",), no_work)
        return rt.now()

    assert world.run(program) == [1_020_000] * 2


@pytest.mark.parametrize("latency_ms", [0, 1])
def test_a_message_finds_one_that_waits(latency_ms: float) -> None:
    """Rank 1 sends a millisecond of bytes to rank 0, which waits already, and back."""
    network = NetworkConfig(topology="switch", link_latency_ms=latency_ms, bandwidth_mbps=8)
    world = world_of(IDEAL, IDEAL, network=network)
    message = torch.zeros(1000, dtype=torch.uint8)

    def program(rt: VirtualRuntime) -> int:
        if rt.rank == 1:
            rt.send(0, message)
            rt.recv(0, message.clone())
        else:
            rt.recv(1, message.clone())
            rt.send(1, message)
        return rt.now()

    one_way_ns = round(2 * latency_ms * MS) + MS
    assert world.run(program) == [one_way_ns, 2 * one_way_ns]


def test_steps_and_messages_are_events() -> None:
    """Both begin: 2. Rank 0 sends, and its message comes to a second port: 2. Rank 1 waits,
    receives and computes: 3.
    """
    network = replace(PAPER, bandwidth_mbps=8)
    world = world_of(IDEAL, IDEAL, network=network, costs=Scripted(work=MS))

    def program(rt: VirtualRuntime) -> None:
        if rt.rank == 0:
            rt.send(1, torch.zeros(2))
        else:
            rt.recv(0, torch.zeros(2))
            rt.compute(("work",), no_work)

    world.run(program)
    assert world.num_events == 7
