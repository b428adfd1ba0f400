"""Rates of this host's disk, one round of a calibration (`calibrate.py`)."""

from __future__ import annotations

import functools
import itertools
import os
import random
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpi_bench.contract.blocks import PAGE, Extent
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure.at_once import together
from tpi_bench.measure.core_rates import endless_products
from tpi_bench.measure.probe import disk_bandwidth, read_all, seconds
from tpi_bench.models.sharder import shard_folders

if TYPE_CHECKING:
    from tpi_bench.host.disk import PendingRead

_DISK_BYTES = 256 << 20
_BLOCK_BYTES = 16 << 20
_LEAST_BLOCK_BYTES = 8 << 20
_PART_BYTES = 1 << 20  # of a block: so small that the gap behind it counts
# What is read goes here in turns. One by one into the same 4 MB again and again a disk of ours gave
# 2.8 to 3.2 GB/s, into 16 MB or more 2.3 to 2.6; with two asked for there was no difference.
_AREA_BYTES = 64 << 20
_QUEUED = 2  # reads, as a window of two has: the one that is waited for, and the next
_READERS = 2
_READING_S = 0.4
_LEAST_READS = 8  # of a disk so slow that the time is over before


def disk_rates(cache_dir: Path) -> dict[str, float]:
    """Direct reads: one reader that does nothing else, one whose core computes, several that do
    nothing else, and single pages; of those that do nothing else also the gap between two reads.

    Of block files that are there, those of one model, by chance: so rounds differ as models do. On
    a disk of ours files were read at 3.3 or at 3.9 GB/s, each at a rate of its own, and what was
    just written at the higher. Where there are too few, a file is written. All of it is read once
    before: of 24 models' blocks that had not been read lately seven came at 0.1 to 1.7 GB/s there,
    and at 2.3 or more when they had been read once or a few times, as a token's blocks have.
    """
    there = list(_models_blocks(cache_dir))
    if there:
        return _rates_of(random.choice(there))
    cache.require_space(cache_dir, 2 * _DISK_BYTES, "calibrating the disk")
    path = cache_dir / ".calibration"
    try:
        in_helper(_write_random, path)
        return _rates_of(_cut([path]))
    finally:
        path.unlink(missing_ok=True)


def _rates_of(blocks: Sequence[Extent]) -> dict[str, float]:
    in_helper(_read_once, blocks)
    probed = [_probed_gb_per_s(blocks)]
    gap_ns, gb_per_s = _gap_and_rate([blocks])
    read_ns = 1 / together(_read_ends_ns, [(blocks, True)], _READING_S)
    computing_ns = max(read_ns - gap_ns, read_ns / 2)
    found = {
        "disk_gb_per_s": gb_per_s,
        "disk_gap_us": gap_ns / 1e3,
        "disk_latency_us": in_helper(_page_s, blocks) * 1e6,
        "disk_computing_gb_per_s": _mean_bytes(blocks) / computing_ns,
    }
    if len(available_cpus()) > 1:  # each reads blocks of its own, as devices do
        half = len(blocks) // _READERS
        shared = _gap_and_rate([blocks[reader * half :][:half] for reader in range(_READERS)])
        found["disk_shared_gap_us"] = shared[0] / 1e3
        found["disk_shared_gb_per_s"] = shared[1]
    probed.append(_probed_gb_per_s(blocks))  # a disk drifts
    return found | {"disk_probe_gb_per_s": statistics.fmean(probed)}


def _read_once(blocks: Sequence[Extent]) -> None:
    from tpi_bench.host.disk import DirectReader
    from tpi_bench.host.memory import anonymous_area

    reader = DirectReader()
    try:
        reader.open(block.path for block in blocks)
        read_all(reader, blocks, anonymous_area(max(block.nbytes for block in blocks)))
    finally:
        reader.close()


def _probed_gb_per_s(blocks: Sequence[Extent]) -> float:
    """What a point's probe of the disk would say: by it the other rates are brought up to date."""
    return in_helper(disk_bandwidth, blocks)[0] / 1e9


def _gap_and_rate(readers: Sequence[Sequence[Extent]]) -> tuple[float, float]:
    """What each read takes besides its bytes, in ns, and bytes a ns, of all readers together.

    What small reads and large ones take differs by their bytes; the gap is what is left of the
    small ones. All read the same kind at a time, as a small read waits for a large one of another.
    On a disk of ours reads of 1 to 16 MB lie within 2 % of such a line; in turns with small ones
    4 MB seemed 6 % faster, and a rate of those two sizes was 1.13 to 1.29 of the probe's.
    """
    parts = [[replace(block, nbytes=_PART_BYTES) for block in blocks] for blocks in readers]
    small_ns, large_ns = (
        1 / together(_read_ends_ns, [(each, False) for each in those], _READING_S)
        for those in (parts, readers)
    )
    ratio = _mean_bytes([block for blocks in readers for block in blocks]) / _PART_BYTES
    gap_ns = max(ratio * small_ns - large_ns, 0.0) / (ratio - 1)
    gap_ns = min(gap_ns, small_ns / 2, large_ns / 2)
    return gap_ns, ratio * _PART_BYTES / (large_ns - gap_ns)


def _mean_bytes(blocks: Sequence[Extent]) -> float:
    return statistics.fmean(block.nbytes for block in blocks)


def _models_blocks(cache_dir: Path) -> Iterator[list[Extent]]:
    """Blocks of the files of each model that has enough of them."""
    for folder in shard_folders(cache_dir).glob("*"):
        blocks = _cut(sorted(folder.glob("*.safetensors")))
        if sum(block.nbytes for block in blocks) >= _DISK_BYTES / 2:
            yield blocks


def _cut(paths: Iterable[Path]) -> list[Extent]:
    """Blocks of these files, as long as they allow, no more than are read once."""
    found: list[Extent] = []
    for path in paths:
        size = path.stat().st_size // PAGE * PAGE
        for start in range(0, size - _LEAST_BLOCK_BYTES + 1, _BLOCK_BYTES):
            found.append(Extent(str(path), start, min(_BLOCK_BYTES, size - start)))
        if sum(block.nbytes for block in found) >= _DISK_BYTES:
            break
    return found


def _write_random(path: Path) -> None:
    import numpy as np

    with path.open("wb") as file:
        file.write(np.random.default_rng(0).bytes(_DISK_BYTES))
        os.fsync(file.fileno())  # else it is written while it is read


def _read_ends_ns(blocks: Sequence[Extent], computes: bool) -> list[int]:
    """When it began and when each block was there, with blocks always queued; where it computes,
    beside products of its core with matrices that come from memory, as the blocks do that go there.
    """
    import torch

    from tpi_bench.host.disk import DirectReader
    from tpi_bench.host.memory import anonymous_area

    torch.set_num_threads(1)
    products = endless_products() if computes else None
    area = anonymous_area(_AREA_BYTES)
    area.fill(0)
    reader = DirectReader()
    reader.open(block.path for block in blocks)
    pending: deque[tuple[PendingRead, list[int]]] = deque()
    following = itertools.cycle(blocks)
    place = 0

    def ask() -> None:
        nonlocal place
        block = next(following)
        place = place if place + block.nbytes <= _AREA_BYTES else 0
        ended: list[int] = []
        read = reader.read(block, area[place : place + block.nbytes], lambda a, b: ended.append(b))
        pending.append((read, ended))
        place += block.nbytes

    try:
        for _ in range(_QUEUED):
            ask()
        ends_ns = [time.monotonic_ns()]
        with torch.inference_mode():
            while ends_ns[-1] - ends_ns[0] < _READING_S * 1e9 or len(ends_ns) <= _LEAST_READS:
                if products:
                    next(products)
                    reader.notice()
                else:
                    pending[0][0].wait()
                while pending and pending[0][1]:
                    pending.popleft()
                    ends_ns.append(time.monotonic_ns())
                    ask()
    finally:
        for read, _ in pending:
            read.wait()
        reader.close()
    return ends_ns


def _page_s(blocks: Sequence[Extent]) -> float:
    """A page by itself."""
    from tpi_bench.host.disk import DirectReader
    from tpi_bench.host.memory import anonymous_area

    pages = [replace(block, nbytes=PAGE) for block in blocks]
    area = anonymous_area(PAGE)
    reader = DirectReader()
    try:
        reader.open(block.path for block in blocks)
        reads = [functools.partial(read_all, reader, [page], area) for page in pages]
        return statistics.median(map(seconds, reads))
    finally:
        reader.close()
