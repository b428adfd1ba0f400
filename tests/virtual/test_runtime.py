"""The virtual runtime: whose time reads, messages and computations take, and what they bring."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.virtual import IDEAL, MS, PAPER, US, Scripted, no_work, world_of
from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.roofline import Operator, Work
from tpi_bench.contract.runtime import BlockReadError, Key
from tpi_bench.virtual.runtime import VirtualRuntime
from tpi_bench.virtual.world import Shared

# The disk.


def block_at(path: Path, nbytes: int, offset: int = 0) -> BlockFile:
    return BlockFile(
        path=str(path),
        kind="ffn",
        layer=0,
        data_offset=offset,
        nbytes=nbytes,
        tensors={},
    )


@pytest.mark.parametrize(
    ("shares", "ends"), [(False, [[11, 22], [12, 24]]), (True, [[11, 34], [23, 46]])]
)
def test_devices_that_share_a_disk_wait_for_each_other(shares: bool, ends: list) -> None:
    """Rank 0 reads 1,000 bytes and rank 1 2,000, at a byte a ns and 10 us latency, both twice.

    Own disks: 10 + 1 and 10 + 2 us each time. Shared: rank 0 0-11, rank 1 11-23, and again.
    """
    device = replace(IDEAL, disk_gb_per_s=1, disk_latency_us=10)
    world = world_of(device, device, shared=Shared(disk=shares))

    def program(rt: VirtualRuntime) -> list[int]:
        size = 1000 * (rt.rank + 1)
        out = torch.empty(size, dtype=torch.uint8, device="meta")
        times = []
        for _ in range(2):
            rt.read(block_at(Path(), size), out).wait()
            times.append(rt.now() // US)
        return times

    assert world.run(program) == ends


def test_a_read_brings_the_bytes_at_its_time(tmp_path: Path) -> None:
    path = tmp_path / "block"
    path.write_bytes(bytes(4) + bytes(range(200)))
    world = world_of(replace(IDEAL, disk_gb_per_s=1, disk_latency_us=1))

    def program(rt: VirtualRuntime) -> torch.Tensor:
        out = rt.alloc("weights", 200)
        handle = rt.read(block_at(path, 200, offset=4), out)
        assert rt.now() == 0
        rt.waiting(handle, "a")
        assert rt.now() == 1200
        return out

    assert world.run(program)[0].tolist() == list(range(200))
    assert world.runtimes[0].bytes_read == 200
    assert world.runtimes[0].ledger_bytes == {"weights": 200}


@pytest.mark.parametrize(
    ("size", "reason"), [(None, "No such file"), (60, "the file ends 40 bytes early")]
)
def test_a_bad_file_is_told_by_the_wait(tmp_path: Path, size: int | None, reason: str) -> None:
    path = tmp_path / "block"
    if size is not None:
        path.write_bytes(bytes(size))
    world = world_of(IDEAL)

    def program(rt: VirtualRuntime) -> None:
        handle = rt.read(block_at(path, 100), rt.alloc("weights", 100))
        rt.sleep(MS)
        handle.wait()

    with pytest.raises(BlockReadError, match=f"cannot read block {path}: {reason}"):
        world.run(program)
    assert world.scheduler.now_ns == MS


# Whose time a message and a computation take.


def test_messages_and_computations_cost_their_own_device_alone() -> None:
    """Overheads of 10, 20 and 40 us; a way is 2 ms. Rank 1 computes 5 ms before it receives.

    Rank 0's two sends end at 10 and 20 us and are at 2,010 and 2,020. Rank 1 is busy until 5,000,
    then takes 20 each. Rank 2 receives at once what 0 sent third (30, there at 2,030) in 40, and
    asks its disk, which takes 40 more and a read of no time.
    """
    devices = [replace(IDEAL, message_overhead_us=us) for us in (10, 20, 40)]
    network = NetworkConfig(topology="switch", link_latency_ms=1)
    world = world_of(*devices, network=network, costs=Scripted(work=5 * MS))
    ping = torch.zeros(1)

    def program(rt: VirtualRuntime) -> list[int]:
        times = []
        steps: list[Callable[[], object]]
        if rt.rank == 0:
            steps = [functools.partial(rt.send, dst, ping) for dst in (1, 1, 2)]
        elif rt.rank == 1:
            steps = [functools.partial(rt.compute, ("work",), no_work)]
            steps += [functools.partial(rt.recv, 0, torch.zeros(1)) for _ in range(2)]
        else:
            empty = torch.empty(8, dtype=torch.uint8, device="meta")
            steps = [functools.partial(rt.recv, 0, torch.zeros(1))]
            steps += [functools.partial(rt.read, block_at(Path(), 8), empty)]
        for step in steps:
            step()
            times.append(rt.now() // US)
        return times

    assert world.run(program) == [[10, 20, 30], [5000, 5020, 5040], [2070, 2110]]
    totals = [dict(runtime.log.totals_ns) for runtime in world.runtimes]
    assert totals == [
        {"sync": 30 * US},
        {"compute": 5 * MS, "sync": 40 * US},
        {"sync": 2070 * US, "load_wait": 40 * US},  # nobody has looked whether the read is over
    ]


def test_a_sent_buffer_may_be_reused_at_once() -> None:
    world = world_of(IDEAL, IDEAL, network=PAPER)

    def program(rt: VirtualRuntime) -> float:
        buffer = torch.zeros(1)
        for value in (1.0, 2.0):
            if rt.rank == 0:
                buffer.fill_(value)
                rt.send(1, buffer)
            else:
                rt.recv(0, buffer)
                assert float(buffer) == value
        return float(buffer.fill_(9))

    assert world.run(program) == [9, 9]


def test_a_message_of_another_size_is_refused() -> None:
    def program(rt: VirtualRuntime) -> None:
        if rt.rank == 0:
            rt.send(1, torch.zeros(2))
        else:
            rt.recv(0, torch.zeros(3))

    with pytest.raises(ValueError, match="rank 0 sent 8 bytes where 12 are received"):
        world_of(IDEAL, IDEAL).run(program)


def test_what_a_device_does_besides_its_verbs() -> None:
    """Python takes 2 us before each verb, and is no part of it. Rank 1 sleeps 15 ms for its
    message, which wakes it for 30 us of the sender's time.
    """
    device = replace(
        IDEAL,
        message_overhead_us=10,
        receive_overhead_us=3,
        step_overhead_us=2,
        wake_overhead_us=30,
    )
    world = world_of(device, device, costs=Scripted(work=15 * MS, look=US))
    ping = torch.zeros(1)

    def program(rt: VirtualRuntime) -> list[int]:
        if rt.rank == 0:
            rt.compute(("work",), no_work)
            rt.send(1, ping)
            return [rt.now() // US]
        rt.recv(0, torch.zeros(1))
        received = rt.now() // US
        rt.compute(("look",), no_work)
        rt.send(0, ping)
        return [received, rt.now() // US]

    sent = 2 + 15_000 + 2 + 10 + 30
    answered = sent + 3 + (2 + 1) + (2 + 10)
    assert world.run(program) == [[sent], [sent + 3, answered]]
    assert dict(world.runtimes[0].log.totals_ns) == {"compute": 15 * MS, "sync": 40 * US}


def test_a_disk_begins_with_a_read_while_it_is_asked_for() -> None:
    """Asking takes 20 us and 1 for 1,000 bytes; the disk needs 50 for 50,000 bytes from then on."""
    device = replace(
        IDEAL, disk_gb_per_s=1, disk_latency_us=0, read_overhead_us=20, asking_gb_per_s=1
    )

    def program(rt: VirtualRuntime) -> list[int]:
        times = []
        for nbytes in (50_000, 1000):
            out = torch.empty(nbytes, dtype=torch.uint8, device="meta")
            handle = rt.read(block_at(Path(), nbytes), out)
            times.append(rt.now() // US)
            rt.waiting(handle, "a")
            times.append(rt.now() // US)
        return times

    assert world_of(device).run(program) == [[70, 70, 91, 91]]
    slow = replace(device, disk_gb_per_s=0.5)
    assert world_of(slow).run(program) == [[70, 100, 121, 121]]


def test_python_is_slower_behind_a_long_computation() -> None:
    """Behind 1 ms of it the next verb begins 50 us later, a read takes 70 us more; the verb after
    that, and what follows a short one, do not. Asking takes 20 us where messages take 10. The
    second message is there 12 us after the first, and waits for nobody who is still 50 us late.
    """
    device = replace(
        IDEAL,
        message_overhead_us=10,
        receive_overhead_us=3,
        step_overhead_us=2,
        read_overhead_us=20,
        swept_overhead_us=50,
        swept_read_overhead_us=70,
    )
    world = world_of(device, device, costs=Scripted(long=MS, short=MS - 1))
    message, out = torch.zeros(1), torch.empty(8, dtype=torch.uint8, device="meta")

    def program(rt: VirtualRuntime) -> list[int]:
        if rt.rank == 1:
            rt.compute(("long",), no_work)
            rt.recv(0, message)
            rt.recv(0, message)
            both_at = rt.now()
            rt.recv(0, message)
            return [both_at]
        ended = []
        verbs = (
            (("long",), [lambda: rt.send(1, message)] * 2),
            (("long",), [lambda: rt.read(block_at(Path(), 8), out)] * 2),
            (("long",), [lambda: rt.compute(("short",), no_work)]),
            (("short",), [lambda: rt.send(1, message)]),
        )
        for key, following in verbs:
            rt.compute(key, no_work)
            for verb in following:
                begun = rt.now()
                verb()
                ended.append(rt.now() - begun)
        return ended

    sends, reads = [(2 + 50 + 10) * US, (2 + 10) * US], [(20 + 70) * US, 20 * US]
    found, (both_at,) = world.run(program)
    assert found == [*sends, *reads, (2 + 50) * US + MS - 1, (2 + 10) * US]
    assert both_at == MS + (2 + 62 + 12 + 3) * US
    plain = replace(device, read_overhead_us=None, swept_read_overhead_us=None)
    assert (plain.asking_ns, plain.swept_asking_ns) == (10 * US, 50 * US)


class _Sized(Scripted):
    """Each computation touches 1000 bytes, and says after how long a wait it was asked for."""

    def __init__(self, **times_ns: int) -> None:
        super().__init__(**times_ns)
        self.waits_ns: list[int] = []

    def run(self, key: Key, fn: Callable, profile: DeviceProfile, idle_ns: int = 0) -> tuple:
        self.waits_ns.append(idle_ns)
        return super().run(key, fn, profile, idle_ns)

    def work(self, key: Key) -> Work:
        return Operator(0, 400), Operator(0, 600)


@pytest.mark.parametrize(
    ("nbytes", "more_us"), [((500,), 30 + 5), ((300, 300), 30 + 6), ((5000,), 30 + 10)]
)
def test_what_was_just_read_is_computed_more_slowly(nbytes: tuple, more_us: int) -> None:
    """Once: 30 us and 10 ns a byte, of as many as it touches. The wait for it counts in that; one
    after that is as any other. Asking takes 4 us and 2 ns a byte.
    """
    device = replace(
        IDEAL,
        disk_gb_per_s=1e-4,
        message_overhead_us=4,
        asking_gb_per_s=0.5,
        streamed_overhead_us=30,
        streamed_gb_per_s=0.1,
    )
    costs = _Sized(work=100 * US)

    def program(rt: VirtualRuntime) -> list[int]:
        taken = []
        rt.compute(("work",), no_work)
        for size in nbytes:
            begun = rt.now()
            handle = rt.read(block_at(Path(), size), torch.empty(size, device="meta"))
            taken.append(rt.now() - begun)
            rt.waiting(handle, "a")
        for _ in range(2):
            begun = rt.now()
            rt.compute(("work",), no_work)
            taken.append(rt.now() - begun)
        return taken

    [found] = world_of(device, costs=costs).run(program)
    assert found[: len(nbytes)] == [4 * US + 2 * size for size in nbytes]
    assert found[len(nbytes) :] == [(100 + more_us) * US, 100 * US]
    assert costs.waits_ns == [0, 0, 0]
    plain = replace(device, streamed_overhead_us=0.0, streamed_gb_per_s=None)
    costs.waits_ns.clear()
    [found] = world_of(plain, costs=costs).run(program)
    assert found[len(nbytes) :] == [100 * US] * 2
    assert costs.waits_ns[1] >= 1000 * sum(nbytes)  # there a wait is a wait
