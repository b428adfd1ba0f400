"""The page cache of virtual devices: least recently used parts go first."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest

from tests.helpers.virtual import IDEAL, Scripted, world_of
from tpi_bench.contract.blocks import PAGE, BlockFile, TensorView
from tpi_bench.engine.paged import FaultedWeights, MappedWeights
from tpi_bench.engine.streaming import WindowConfig, window_of
from tpi_bench.virtual.disk import FAULT_NS_PER_BYTE, READ_AHEAD_BYTES, DiskQueue, PageCache
from tpi_bench.virtual.runtime import VirtualRuntime


def scan(cache: PageCache, num_files: int, nbytes: int, capacity: int) -> int:
    """Bytes that a pass over all files reads from the disk."""
    return sum(cache.touch(f"f{i}", nbytes, capacity) for i in range(num_files))


def test_what_fits_is_read_once() -> None:
    cache = PageCache()
    assert [scan(cache, 4, 25, 100) for _ in range(3)] == [100, 0, 0]


def test_a_cyclic_scan_of_more_than_fits_hits_nothing() -> None:
    cache = PageCache()
    assert [scan(cache, 4, 25, 99) for _ in range(3)] == [100, 100, 100]


def test_less_memory_evicts_at_once() -> None:
    cache = PageCache()
    scan(cache, 2, 20, 40)
    assert cache.touch("f1", 20, 20) == 0
    assert cache.touch("f0", 20, 40) == 20


class PageByPage:
    """The same, a page (a byte) at a time, as the kernel would."""

    def __init__(self) -> None:
        self.held: OrderedDict[tuple[str, int, int], None] = OrderedDict()

    def touch(self, path: str, nbytes: int, capacity: int) -> int:
        missing = 0
        while len(self.held) > capacity:
            self.held.popitem(last=False)
        for page in range(nbytes):
            missing += (path, nbytes, page) not in self.held
            self.held.pop((path, nbytes, page), None)
            self.held[path, nbytes, page] = None
            while len(self.held) > capacity:
                self.held.popitem(last=False)
        return missing


@pytest.mark.parametrize("seed", range(20))
def test_it_counts_as_a_cache_of_single_pages_does(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 12) for _ in range(5)]
    ours, pages, capacity = PageCache(), PageByPage(), draw.randint(1, 40)
    for step in range(200):
        name = step % 5 if seed % 2 else draw.randrange(5)
        if draw.random() < 0.1:
            capacity = draw.randint(1, 40)
        asked = (f"f{name}", sizes[name], capacity)
        assert ours.touch(*asked) == pages.touch(*asked)


@pytest.mark.parametrize("latency_us", [0, 40, 300])
@pytest.mark.parametrize("in_flight", [1, 2, 4])
@pytest.mark.parametrize("nbytes", [1, 100_000, 250_000, 1_000_000])
def test_a_stream_takes_as_long_as_its_parts(latency_us: int, in_flight: int, nbytes: int) -> None:
    """Parts of 100 kB at 1 GB/s, one asked for when the one `in_flight` before it has come."""
    device = replace(IDEAL, disk_gb_per_s=1.0, disk_latency_us=latency_us, disk_queue_depth=4)
    disk, ends = DiskQueue(device), [5_000] * in_flight
    for start in range(0, nbytes, 100_000):
        size = min(100_000, nbytes - start)
        ends.append(disk.expected_end(disk.read(ends[-in_flight], size)))
    assert DiskQueue(device).stream(5_000, nbytes, 100_000, in_flight) == pytest.approx(
        ends[-1], abs=2
    )


def block(number: int, nbytes: int) -> BlockFile:
    return BlockFile(
        path=f"planned:{number}",
        kind="attn",
        layer=number,
        data_offset=0,
        nbytes=nbytes,
        tensors={"w": TensorView((1,), 0)},
    )


@pytest.mark.parametrize(
    ("memory_gb", "paging", "compute_ns", "ends"),
    [
        # Everything fits: 2 x 1 MB at 1 GB/s in the first token, then computing alone.
        (1.0, None, 100_000, [2_000_000, 2_200_000, 2_400_000]),
        # Nothing stays. Reading hides computing, which takes the pages as they come ...
        (0.0015, None, 100_000, [2_000_000, 4_000_000, 6_000_000]),
        # ... and the other way round.
        (0.0015, None, 1_500_000, [3_000_000, 6_000_000, 9_000_000]),
        # What paging in takes besides is not hidden by computing.
        (0.0015, 2.0, 1_500_000, [4_000_000, 8_000_000, 12_000_000]),
        (0.0015, 0.5, 100_000, [4_200_000, 8_400_000, 12_600_000]),
    ],
)
def test_golden_times_of_mapped_weights(
    monkeypatch: pytest.MonkeyPatch,
    memory_gb: float,
    paging: float | None,
    compute_ns: int,
    ends: list[int],
) -> None:
    """Two blocks of 1 MB on a disk of 1 GB/s without latency, three tokens."""
    import torch

    monkeypatch.setattr(
        "tpi_bench.virtual.runtime.map_file", lambda b: torch.zeros(b.nbytes).byte().numpy()
    )
    device = replace(
        IDEAL,
        memory_gb=memory_gb,
        disk_gb_per_s=1.0,
        disk_queue_depth=8,
        paging_gb_per_s=paging,
    )

    def program(rt: VirtualRuntime) -> list[int]:
        weights: Any = MappedWeights(rt, [block(0, 1_000_000), block(1, 1_000_000)])
        times = []
        for _ in range(3):
            for index in range(2):
                weights.acquire(index)
                rt.compute(("attn",), lambda: None)
                weights.release(index)
            times.append(rt.now())
        return times

    world = world_of(device, costs=Scripted(attn=compute_ns))
    assert world.run(program) == [ends]
    assert world.runtimes[0].bytes_read == (2_000_000 if memory_gb == 1.0 else 6_000_000)


@pytest.mark.parametrize("memory_gb", [1.0, 0.0015])
def test_golden_times_of_mappings_that_are_made_anew(
    monkeypatch: pytest.MonkeyPatch, memory_gb: float
) -> None:
    """As above, and page faults at every use; a disk's latency meets a plain read-ahead."""
    import torch

    monkeypatch.setattr(
        "tpi_bench.virtual.runtime.map_file", lambda b: torch.zeros(b.nbytes).byte().numpy()
    )
    nbytes, compute_ns, latency_us = 256 * PAGE, 100_000, 200
    device = replace(
        IDEAL,
        memory_gb=memory_gb,
        disk_gb_per_s=1.0,
        disk_latency_us=latency_us,
        disk_queue_depth=8,
    )
    own = [block(0, nbytes), block(1, nbytes)]

    def program(rt: VirtualRuntime) -> list[int]:
        plan = window_of(own, WindowConfig(loading="faulted"))
        weights: Any = FaultedWeights(rt, own, plan)
        times = []
        for _ in range(3):
            for index in range(2):
                weights.acquire(index)
                rt.compute(("attn",), lambda: None)
                weights.release(index)
            times.append(rt.now())
        return times

    world = world_of(device, costs=Scripted(attn=compute_ns))
    ((first, second, third),) = world.run(program)
    # Two parts in flight, 8 in a block: four rounds of a latency and a part, and the last part.
    read = 4 * (latency_us * 1000 + READ_AHEAD_BYTES) + READ_AHEAD_BYTES
    assert first == 2 * read
    again = compute_ns + round(nbytes * FAULT_NS_PER_BYTE) if memory_gb == 1.0 else read
    assert (second - first, third - second) == (2 * again, 2 * again)
