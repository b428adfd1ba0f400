"""The virtual testbed: golden times, hand-made traces, ways to end, and the oracle's tokens."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.galaxy import GalaxySystem
from baselines.pipeline import PipelineSystem
from tests.models_zoo import oracle, prompt_of
from tests.running import make_job
from tpi_bench.collectives import COLLECTIVES
from tpi_bench.job import Job, Outcome
from tpi_bench.links import NetworkConfig
from tpi_bench.profiles import DeviceProfile, ideal_device
from tpi_bench.runtime import BlockReadError, DeviceLost, Key
from tpi_bench.tpi import TpiSystem
from tpi_bench.virtual import Deadlock, OutOfMemory, VirtualRuntime, World
from tpi_bench.virtual_testbed import VirtualTestbed, run_virtual
from tpi_bench.weights import BlockFile, TensorView, planned_blocks
from tpi_bench.window import Window, WindowConfig
from tpi_bench.workload import Request

US, MS = 1_000, 1_000_000
IDEAL = ideal_device("this_host")


class Scripted:
    """Everything really runs and takes a fixed time by its kind; what is not named takes none."""

    def __init__(self, **times_ns: int) -> None:
        self._times_ns = times_ns

    def run(
        self, key: Key, fn: Callable[[], Any], device: DeviceProfile, idle_ns: int = 0
    ) -> tuple[Any, int]:
        return fn(), self._times_ns.get(str(key[0]), 0)


def world_of(*devices: DeviceProfile, network: NetworkConfig | None = None, **extra: Any) -> World:
    costs = extra.pop("costs", None) or Scripted()
    return World(devices, network or NetworkConfig(), costs, trace=True, **extra)


def no_work() -> None:
    """What a scripted computation does."""


# Golden times of the paper's network: a hop is a millisecond, four are a way.

PAPER = NetworkConfig(topology="paper", link_latency_ms=1)


def allreduce(
    name: str, num_devices: int, count: int, network: NetworkConfig
) -> tuple[list[int], list[torch.Tensor]]:
    """When each rank has the sum, in ns, and the sums."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(num_devices, count, generator=generator)

    def program(rt: VirtualRuntime) -> tuple[int, torch.Tensor]:
        total = COLLECTIVES[name](rt, inputs[rt.rank].clone())
        return rt.now(), total

    ends, sums = zip(*world_of(*[IDEAL] * num_devices, network=network).run(program), strict=True)
    for total in sums:
        assert torch.equal(total, sums[0])
        torch.testing.assert_close(total.double(), inputs.double().sum(0), rtol=0, atol=1e-5)
    return list(ends), list(sums)


GOLDEN = [
    # The master has the sum after one way, the workers after two: 8 hops.
    ("star", 1, [4, 8, 8, 8, 8, 8, 8, 8]),
    # Groups 1-2, 3-4 and 5-7: the master after two ways, heads after three, leaves after four.
    ("tree", 1, [8, 12, 16, 12, 16, 12, 16, 16]),
    ("direct", 1, [4] * 8),
    # Seven steps to reduce, seven to gather: 56 hops.
    ("ring", 8, [56] * 8),
    # One value is one chunk, and empty ones are not sent: it goes from 0 to 7, which has the sum
    # after 7 ways, and on over 0 to 6, which has it after 14.
    ("ring", 1, [32, 36, 40, 44, 48, 52, 56, 28]),
]


@pytest.mark.parametrize(("name", "count", "ends_ms"), GOLDEN)
def test_golden_times(name: str, count: int, ends_ms: list[int]) -> None:
    ends, sums = allreduce(name, 8, count, PAPER)
    assert ends == [ms * MS for ms in ends_ms]
    again, same_sums = allreduce(name, 8, count, PAPER)
    assert again == ends
    assert all(torch.equal(a, b) for a, b in zip(sums, same_sums, strict=True))


# With finite links: 8 floats are 32 bytes, which take T = 32 us; a way takes L.

TRANSFER = 32 * US


@pytest.fixture(params=[500, 10], ids=["long", "short"])
def way(request: pytest.FixtureRequest) -> tuple[NetworkConfig, int]:
    """A network with links of a byte a us, and the ns of a way: much more or less than T."""
    hop_ms = request.param / 2e3
    network = NetworkConfig(topology="switch", link_latency_ms=hop_ms, bandwidth_mbps=8)
    return network, request.param * US


@pytest.mark.parametrize("n", [4, 8])
def test_contention_of_star(way: tuple[NetworkConfig, int], n: int) -> None:
    """First bits of all workers are at the master at L; its down-link passes one after another.

    It has all at L + (N - 1) T. Its up-link then sends N - 1 sums: worker k's is there at
    L + (N - 1) T + L + k T, the last one's at 2 L + 2 (N - 1) T.
    """
    network, latency = way
    gathered = latency + (n - 1) * TRANSFER
    expected = [gathered] + [gathered + latency + k * TRANSFER for k in range(1, n)]
    assert allreduce("star", n, 8, network)[0] == expected
    assert expected[-1] == 2 * latency + 2 * (n - 1) * TRANSFER


@pytest.mark.parametrize("n", [4, 8])
def test_contention_of_ring(way: tuple[NetworkConfig, int], n: int) -> None:
    """Each of the 2 (N - 1) steps passes a chunk of an N-th, on links of its own: L + T / N."""
    network, latency = way
    step = latency + TRANSFER // n
    assert allreduce("ring", n, 8, network)[0] == [2 * (n - 1) * step] * n


@pytest.mark.parametrize("n", [4, 8])
def test_contention_of_direct(way: tuple[NetworkConfig, int], n: int) -> None:
    """Every up-link sends and every down-link receives N - 1 payloads without a pause."""
    network, latency = way
    assert max(allreduce("direct", n, 8, network)[0]) == latency + (n - 1) * TRANSFER


def test_contention_of_tree(way: tuple[NetworkConfig, int]) -> None:
    """Four devices, groups 1 and 2-3: the leaf sends first, its head has the pair at L + T.

    Head 1's partial is at the master at L + T, head 2's at 2 (L + T). Back: to 1 and, T later, to
    2, which has it at 3 (L + T) + T and sends it to the leaf: 4 (L + T) + T.
    """
    network, latency = way
    step = latency + TRANSFER
    expected = [2 * step, 3 * step, 3 * step + TRANSFER, 4 * step + TRANSFER]
    assert allreduce("tree", 4, 8, network)[0] == expected


# Two blocks that overlap a sync.


def streamed_blocks(layers: int) -> list[BlockFile]:
    """Attention of 4,096 and FFN of 8,192 bytes: as many ns from a disk of 1 GB/s."""
    return [
        BlockFile(
            path="",
            kind=kind,
            layer=layer,
            dtype="float32",
            data_offset=0,
            nbytes=nbytes,
            tensors={"w": TensorView((4,), 0)},
        )
        for layer in range(layers)
        for kind, nbytes in (("attn", 4096), ("ffn", 8192))
    ]


def test_a_load_behind_a_sync_costs_what_does_not_fit() -> None:
    """Attention computes 1,000 ns, FFN 10,000, a sync (direct, one way) is 2,000; window 2.

    At 0 both of layer 0 are asked for: there at 4,096 and 12,288. Attention waits 4,096 and ends
    at 5,096, where its next load queues: 12,288-16,384. Synced at 7,096, the FFN waits 5,192 for
    its own and ends at 22,288, where its next load starts: until 30,480. Synced at 24,288: the
    attention's is there. It ends at 25,288, synced at 27,288; the FFN waits the rest, 3,192, and
    ends at 40,480. From here on alike: an FFN's load hides behind sync, attention and sync, which
    is 5,000 of 8,192; an attention's 4,096 fit behind sync, FFN and sync.
    """
    network = NetworkConfig(topology="switch", link_latency_ms=0.001)
    device = replace(IDEAL, disk_gb_per_s=1)
    world = world_of(device, device, network=network, costs=Scripted(attn=1_000, ffn=10_000))

    def program(rt: VirtualRuntime) -> list[int]:
        own = streamed_blocks(2)
        window = Window(rt, own, WindowConfig(size=2))
        ends = []
        for _token in range(2):
            for index, block in enumerate(own):
                window.acquire(index)
                rt.compute((block.kind,), no_work)
                ends.append(rt.now())
                window.release(index)
                COLLECTIVES["direct"](rt, torch.ones(1))
        return ends

    with torch.device("meta"):  # no bytes, so no files
        results = world.run(program)
    ends = [5_096, 22_288, 25_288, 40_480, 43_480, 58_672, 61_672, 76_864]
    assert results == [ends, ends]
    for runtime in world.runtimes:
        loads = [span for span in runtime.log.spans if span.kind == "load_wait"]
        waits = [s.end_ns - s.start_ns for s in loads if s.key != "request"]
        assert waits == [4_096, 5_192, 0, 3_192, 0, 3_192, 0, 3_192]
        assert runtime.log.totals_ns["load_wait"] == sum(waits)
        assert runtime.log.totals_ns["sync"] == 8 * 2_000
        assert runtime.log.totals_ns["compute"] == 4 * 11_000


# The disk.


def block_at(path: Path, nbytes: int, offset: int = 0) -> BlockFile:
    return BlockFile(
        path=str(path),
        kind="ffn",
        layer=0,
        dtype="float32",
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
    world = world_of(device, device, shares_disk=shares)

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
        {"sync": 2070 * US, "load_wait": 40 * US, "read": 0},
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

    with pytest.raises(DeviceLost, match="rank 0 sent 8 bytes where 12 were due"):
        world_of(IDEAL, IDEAL).run(program)


# Ways to end before the end.


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

    expected = r"needs 1.50 GB \(kv_cache 0.60, window 0.90\), but small has 1.2 GB"
    with pytest.raises(OutOfMemory, match=expected):
        world.run(program)
    assert list(world.failed) == [1]
    assert world.runtimes[0].ledger_bytes == {"kv_cache": 600_000_000, "window": 900_000_000}
    assert world.scheduler.now_ns == MS


# Whole jobs.

NUM_NEW = 12
REQUEST = Request(prompt_ids=prompt_of(20), num_new_tokens=NUM_NEW)
REAL = DeviceProfile(
    name="real",
    cores=4,
    memory_gb=1,
    memory_gb_per_s=10,
    peak_gflops=50,
    op_overhead_us=3,
    disk_gb_per_s=0.5,
    disk_latency_us=80,
    disk_queue_depth=4,
    message_overhead_us=15,
)


def virtual_job(
    system: Any,
    folder: Path,
    cache_dir: Path,
    num_devices: int,
    device: DeviceProfile = IDEAL,
    **extra: Any,
) -> Job:
    job = make_job(system, folder, cache_dir, num_devices=num_devices, request=REQUEST, **extra)
    return replace(job, devices=(device,) * num_devices)


def run_here(job: Job, cache_dir: Path, **settings: Any) -> Outcome:
    """In this process, which keeps its number of threads."""
    num_threads = torch.get_num_threads()
    try:
        return run_virtual(job, VirtualTestbed(**settings), cache_dir, None)
    finally:
        torch.set_num_threads(num_threads)


SYSTEMS = [
    (num_devices, system)
    for num_devices, (window, retain) in itertools.product((2, 4), (("off", 0), (2, 0), (2, 2)))
    for system in (
        *(
            TpiSystem(collective=collective, window=window, retain_every=retain)
            for collective in COLLECTIVES
        ),
        PipelineSystem(window=window, retain_every=retain),
    )
]
SYSTEMS += [
    (3, GalaxySystem()),
    (2, TpiSystem(loading="mmap")),
    (1, TpiSystem(loading="blocking", resident_io=True)),
    (2, PipelineSystem(loading="blocking")),
    (3, PipelineSystem(loading="mmap")),
]


def system_id(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    parts = [value.name]
    parts += [str(getattr(value, n, "")) for n in ("collective", "window", "retain_every")]
    return "-".join([*parts, getattr(value, "loading", "")])


@pytest.mark.parametrize(("num_devices", "system"), SYSTEMS, ids=system_id)
def test_measured_runs_give_the_oracles_tokens(
    checkpoints: dict[str, Path], cache_dir: Path, num_devices: int, system: Any
) -> None:
    job = virtual_job(system, checkpoints["gqa"], cache_dir, num_devices)
    outcome = run_here(job, cache_dir, cost="measured")
    assert outcome.status == "ok", outcome.error
    assert outcome.generation is not None
    assert (
        outcome.generation.token_ids == oracle(checkpoints["gqa"], REQUEST.prompt_ids, NUM_NEW)[0]
    )
    assert ("window" in outcome.devices[0].ledger_bytes) == (
        system.window_config().size is not None
    )


def test_the_testbed_runs_in_its_own_process_and_tells_the_tokens(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "logits.pt"
    job = virtual_job(
        TpiSystem(collective="tree", window=2),
        checkpoints["gqa"],
        cache_dir,
        4,
        network=PAPER,
        logits_path=str(path),
    )
    told: list[int] = []
    outcome = VirtualTestbed(cost="measured").run(job, told.append, cache_dir)
    assert outcome.status == "ok", outcome.error
    expected_ids, expected_logits = oracle(checkpoints["gqa"], REQUEST.prompt_ids, NUM_NEW)
    assert told == expected_ids
    assert (torch.load(path) - expected_logits).abs().max() < 1e-3
    assert outcome.round_trips_ns
    assert set(outcome.round_trips_ns) == {8 * MS}


def modelled(
    folder: Path,
    cache_dir: Path,
    system: Any = None,
    seed: int = 0,
    device: DeviceProfile = REAL,
    **settings: Any,
) -> Outcome:
    network = NetworkConfig(
        topology="paper", link_latency_ms=0.1, jitter_ms=0.05, bandwidth_mbps=100, seed=seed
    )
    system = system or TpiSystem(collective="ring", window=2)
    job = virtual_job(system, folder, cache_dir, 4, device, network=network)
    if settings.get("cost") != "measured":  # no files are needed
        assert job.plan is not None
        job = replace(job, blocks=planned_blocks(job.config, job.plan, "float32"))
    return run_here(job, cache_dir, trace=True, **settings)


def test_two_modelled_runs_are_identical(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    first, second, other = (
        modelled(checkpoints["gqa"], cache_dir, seed=seed) for seed in (0, 0, 1)
    )
    assert first.status == "ok", first.error
    assert first.generation == second.generation
    assert first.num_events == second.num_events
    assert first.round_trips_ns == second.round_trips_ns
    for one, same in zip(first.devices, second.devices, strict=True):
        assert one.ledger_bytes == same.ledger_bytes
        assert one.spans
        assert one.spans == same.spans
    assert other.generation != first.generation  # jitter


def test_measured_costs_are_kept(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The first run rehearses until it is charged by the file, so the second one is the same."""
    job = virtual_job(TpiSystem(window=2), checkpoints["gqa"], tmp_path, 2, network=PAPER)
    first, second = (run_here(job, tmp_path, cost="measured") for _ in range(2))
    assert first.generation is not None
    assert first.generation == second.generation
    assert sum(kinds["compute"] for kinds in first.generation.account) > 0


def test_a_shared_disk_is_slower(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """Four devices at a disk that bounds them take nearly four times as long."""
    device = replace(REAL, disk_gb_per_s=0.001)
    ends = []
    for shares_disk in (False, True):
        outcome = modelled(checkpoints["gqa"], cache_dir, device=device, shares_disk=shares_disk)
        assert outcome.generation is not None
        ends.append(outcome.generation.token_ns[-1])
    assert 2 < ends[1] / ends[0] < 4


def test_a_tokens_account_is_its_time(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """Virtual time passes only in what is logged."""
    generation = modelled(checkpoints["gqa"], cache_dir).generation
    assert generation is not None
    times = [generation.request_ns, *generation.token_ns]
    assert [sum(kinds.values()) for kinds in generation.account] == [
        after - before for before, after in itertools.pairwise(times)
    ]


@pytest.mark.parametrize("window", ["off", 2])
def test_modelled_and_measured_hold_and_read_the_same_bytes(
    checkpoints: dict[str, Path], cache_dir: Path, window: Any
) -> None:
    found = []
    for cost in ("modelled", "measured"):
        system = TpiSystem(window=window)
        outcome = modelled(checkpoints["gqa"], cache_dir, system, cost=cost)
        assert outcome.status == "ok", outcome.error
        found.append([(d.ledger_bytes, d.weight_bytes_read) for d in outcome.devices])
    assert found[0] == found[1]


def test_failures_of_a_job_are_told(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    lost = modelled(checkpoints["gqa"], cache_dir, fail_rank=2, fail_at_s=0.02)
    assert (lost.status, lost.error) == (
        "device_lost",
        "rank 2 failed at 0.02 s of virtual time, as asked",
    )
    late = modelled(checkpoints["gqa"], cache_dir, fail_rank=2, fail_at_s=1000)
    assert late.generation == modelled(checkpoints["gqa"], cache_dir).generation
    small = virtual_job(TpiSystem(), checkpoints["gqa"], cache_dir, 2)
    tight = replace(small, devices=(IDEAL, replace(IDEAL, name="tight", memory_gb=1e-5)))
    full = run_here(tight, cache_dir)
    assert full.status == "oom"
    assert (full.error or "").startswith("rank 1 needs")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_devices": 0}, "testbed.num_devices=0 must be at least 1"),
        ({"cost": "free"}, "testbed.cost=free is unknown; choose modelled or measured"),
        ({"threads_per_device": 0}, "testbed.threads_per_device=0 must be at least 1"),
        ({"proportions": "size"}, "testbed.proportions=size must be a list of numbers, strength"),
        ({"fail_at_s": -1}, "testbed.fail_at_s=-1 must be at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirtualTestbed(**settings)


def test_only_a_device_of_the_run_can_fail(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    job = virtual_job(TpiSystem(), checkpoints["gqa"], cache_dir, 2)
    with pytest.raises(ValueError, match=r"testbed\.fail_rank=2 must be 0 to 1"):
        VirtualTestbed(fail_rank=2).run(job, None, cache_dir)
