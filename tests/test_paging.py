"""The page cache of virtual devices: least recently used parts go first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.test_virtual import IDEAL, Scripted, world_of
from tpi_bench.paging import PageCache
from tpi_bench.virtual import VirtualRuntime
from tpi_bench.weights import BlockFile, TensorView
from tpi_bench.window import MappedWeights


def scan(cache: PageCache, num_files: int, nbytes: int, capacity: int) -> int:
    """Bytes that a pass over all files reads from the disk."""
    return sum(sum(cache.touch(f"f{i}", nbytes, capacity)) for i in range(num_files))


def test_what_fits_is_read_once() -> None:
    cache = PageCache(part_bytes=10)
    assert [scan(cache, 4, 25, 100) for _ in range(3)] == [100, 0, 0]


def test_a_cyclic_scan_of_more_than_fits_hits_nothing() -> None:
    cache = PageCache(part_bytes=10)
    assert [scan(cache, 4, 25, 99) for _ in range(3)] == [100, 100, 100]


def test_the_last_touched_stays() -> None:
    cache = PageCache(part_bytes=10)
    scan(cache, 4, 20, 60)
    assert cache.touch("f3", 20, 60) == []
    assert cache.touch("f1", 20, 60) == []
    assert cache.touch("f0", 20, 60) == [10, 10]
    assert cache.touch("f2", 20, 60) == [10, 10]  # the least recently used made room for f0


def test_less_memory_evicts_at_once() -> None:
    cache = PageCache(part_bytes=10)
    scan(cache, 2, 20, 40)
    assert cache.touch("f1", 20, 20) == []
    assert cache.touch("f0", 20, 40) == [10, 10]


def test_a_longer_look_at_a_file_reads_the_rest() -> None:
    cache = PageCache(part_bytes=10)
    assert cache.touch("f", 4, 100) == [4]
    assert cache.touch("f", 25, 100) == [6, 10, 5]


def block(number: int, nbytes: int) -> BlockFile:
    return BlockFile(
        path=f"planned:{number}",
        kind="attn",
        layer=number,
        dtype="float32",
        data_offset=0,
        nbytes=nbytes,
        tensors={"w": TensorView((1,), 0)},
    )


@pytest.mark.parametrize(
    ("memory_gb", "compute_ns", "ends"),
    [
        # Everything fits: 2 x 1 MB at 1 GB/s in the first token, then computing alone.
        (1.0, 100_000, [2_000_000, 2_200_000, 2_400_000]),
        # Nothing stays. Reading hides computing, which takes the pages as they come ...
        (0.0015, 100_000, [2_000_000, 4_000_000, 6_000_000]),
        # ... and the other way round.
        (0.0015, 1_500_000, [3_000_000, 6_000_000, 9_000_000]),
    ],
)
def test_golden_times_of_mapped_weights(
    monkeypatch: pytest.MonkeyPatch, memory_gb: float, compute_ns: int, ends: list[int]
) -> None:
    """Two blocks of 1 MB on a disk of 1 GB/s without latency, three tokens."""
    import torch

    monkeypatch.setattr(
        "tpi_bench.virtual.map_file", lambda b: torch.zeros(b.nbytes).byte().numpy()
    )
    device = replace(IDEAL, memory_gb=memory_gb, disk_gb_per_s=1.0, disk_queue_depth=8)

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
