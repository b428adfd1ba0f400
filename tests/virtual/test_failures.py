"""Ways to end before the end: deadlocks, lost devices, errors, too little memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.virtual import IDEAL, MS, PAPER, world_of
from tpi_bench.contract.runtime import DeviceLost
from tpi_bench.engine.device_model import Steps
from tpi_bench.virtual.runtime import OutOfMemory, VirtualRuntime
from tpi_bench.virtual.scheduler import Deadlock
from tpi_bench.virtual.world import World


def test_a_deadlock_names_who_waits_for_whom() -> None:
    world = world_of(IDEAL, IDEAL, IDEAL, network=PAPER)
    left = []

    def program(rt: VirtualRuntime) -> None:
        try:
            if rt.rank < 2:
                rt.recv(1 - rt.rank, torch.zeros(1))
                rt.send(1 - rt.rank, torch.zeros(1))
        finally:
            left.append(rt.rank)

    with pytest.raises(Deadlock) as caught:
        world.run(program)
    assert str(caught.value) == "deadlock: rank 0 waits for rank 1, rank 1 waits for rank 0"
    assert sorted(left) == [0, 1, 2]
    assert_nothing_runs(world)


def test_a_master_that_does_not_end_its_steps_is_told_so() -> None:
    def program(rt: VirtualRuntime) -> None:
        steps = Steps(rt)
        if rt.rank == 0:
            steps.announce(range(1, rt.world_size), 1, 0)
        else:
            assert list(steps) == [(1, 0)]

    words = (
        "rank 0 returned from run_device while rank 1 still exchanges messages with it; "
        "a master whose workers loop over Steps calls Steps.end before it returns"
    )
    with pytest.raises(Deadlock, match=words):
        world_of(IDEAL, IDEAL, IDEAL, network=PAPER).run(program)


def assert_nothing_runs(world: World) -> None:
    """A greenlet is true from its start to its end."""
    assert all(runtime.greenlet is not None for runtime in world.runtimes)
    assert not any(runtime.greenlet for runtime in world.runtimes)


def busy_loop(rt: VirtualRuntime) -> int:
    """Ten milliseconds; ranks above 0 end in wait for the master."""
    for _ in range(10):
        rt.sleep(MS)
    if rt.rank:
        rt.recv(0, torch.zeros(1))
    else:
        for worker in range(1, rt.world_size):
            rt.send(worker, torch.zeros(1))
    return rt.now()


@pytest.mark.parametrize("time_ns", [0, 3_500_000, 10 * MS + 1])
def test_a_failed_device_ends_the_run(time_ns: int) -> None:
    world = world_of(IDEAL, IDEAL, IDEAL, network=PAPER)
    world.fail_at(1, time_ns)
    with pytest.raises(DeviceLost) as caught:
        world.run(busy_loop)
    assert caught.value.rank == 1
    assert str(caught.value) == f"rank 1 failed at {time_ns / 1e9:g} s of virtual time, as asked"
    assert world.scheduler.now_ns == time_ns
    assert_nothing_runs(world)


def test_a_failure_after_the_end_does_nothing() -> None:
    ends = []
    for time_ns in (None, 14 * MS + 1):
        world = world_of(IDEAL, IDEAL, IDEAL, network=PAPER)
        if time_ns is not None:
            world.fail_at(1, time_ns)
        ends.append(world.run(busy_loop))
        assert not world.failed
        assert_nothing_runs(world)
    assert ends[0] == ends[1] == [10 * MS, 14 * MS, 14 * MS]


@pytest.mark.parametrize("after_ns", [0, 5 * MS])
def test_an_error_in_a_rank_ends_the_run(after_ns: int) -> None:
    world = world_of(IDEAL, IDEAL, IDEAL, network=PAPER)

    def program(rt: VirtualRuntime) -> None:
        if rt.rank == 1:
            rt.sleep(after_ns)
            raise KeyError("broken")
        rt.recv(1, torch.zeros(1))

    with pytest.raises(KeyError, match="broken"):
        world.run(program)
    assert list(world.failed) == [1]
    assert isinstance(world.failed[1], KeyError)
    assert world.scheduler.now_ns == after_ns
    assert_nothing_runs(world)


def test_more_than_the_memory_is_out_of_memory() -> None:
    """Exactly the memory fits; rank 1 has less and fails, with need and capacity."""
    world = world_of(replace(IDEAL, memory_gb=1.5), replace(IDEAL, name="small", memory_gb=1.2))

    def program(rt: VirtualRuntime) -> None:
        rt.hold("kv_cache", 600_000_000)
        with torch.device("meta"):
            rt.alloc("window", 600_000_000)
            rt.sleep(MS)
            rt.alloc("window", 300_000_000)

    expected = r"needs 1.5 GB \(kv_cache 0.6, window 0.9\), but small has 1.2 GB"
    with pytest.raises(OutOfMemory, match=expected):
        world.run(program)
    assert list(world.failed) == [1]
    assert world.runtimes[0].ledger_bytes == {"kv_cache": 600_000_000, "window": 900_000_000}
    assert world.scheduler.now_ns == MS


@pytest.mark.parametrize("peer", [1, 3, -1])
def test_messages_go_to_another_rank_that_there_is(peer: int) -> None:
    """As in processes: not to oneself, and not around the end of a list."""
    words = rf"rank 1 exchanges a message with rank {peer}; there are 0 to 2, and no messages to"
    for does in ("send", "recv"):

        def program(rt: VirtualRuntime, does: str = does) -> None:
            if rt.rank == 1:
                getattr(rt, does)(peer, torch.zeros(1))

        with pytest.raises(ValueError, match=words):
            world_of(IDEAL, IDEAL, IDEAL, network=PAPER).run(program)


def test_a_message_is_a_tensor() -> None:
    def program(rt: VirtualRuntime) -> None:
        if rt.rank == 0:
            rt.send(1, [0.0])  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"a message must be a tensor, not of type list"):
        world_of(IDEAL, IDEAL, network=PAPER).run(program)
