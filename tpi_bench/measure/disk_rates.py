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
from typing import TYPE_CHECKING, NamedTuple

from tpi_bench.contract.blocks import PAGE, Extent
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.measure.core_rates import endless_products
from tpi_bench.measure.probe import read_all, seconds
from tpi_bench.models.sharder import shard_folders

if TYPE_CHECKING:
    import numpy as np

    from tpi_bench.host.disk import DirectReader, PendingRead

BY_PROBE = ("disk_gb_per_s", "disk_computing_gb_per_s", "disk_shared_gb_per_s")
PROBE = "disk_probe_gb_per_s"  # what the others are brought up to date by

_DISK_BYTES = 256 << 20
_BLOCK_BYTES = 16 << 20
_LEAST_BLOCK_BYTES = 8 << 20
_PART_BYTES = 1 << 20  # of a block: so small that the gap behind it counts
# What is read goes here in turns. One by one into the same 4 MB again and again a disk of ours gave
# 2.8 to 3.2 GB/s, into 16 MB or more 2.3 to 2.6; with two asked for there was no difference.
_AREA_BYTES = 64 << 20
_QUEUED = 2  # reads, as a window of two has: the one that is waited for, and the next
_TURN_BYTES = 96 << 20  # of each way
_TURNS_S = 3.5  # and one turn at least


def disk_rates(cache_dir: Path) -> dict[str, float]:
    """Direct reads of one that does nothing else, and of one whose core computes, the gap between
    two reads, and single pages.

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
    ways_ns = in_helper(_in_turns, blocks)
    gap_ns, gb_per_s = _gap_and_rate(ways_ns["small"], ways_ns["large"])
    large_bytes, large_ns = ways_ns["computing"]
    computing_ns = max(large_ns - gap_ns, large_ns / 2)
    probe_bytes, probe_ns = ways_ns["probe"]
    return {
        "disk_gb_per_s": gb_per_s,
        "disk_gap_us": gap_ns / 1e3,
        "disk_latency_us": in_helper(_page_s, blocks) * 1e6,
        "disk_computing_gb_per_s": large_bytes / computing_ns,
        PROBE: probe_bytes / probe_ns,
    }


def _read_once(blocks: Sequence[Extent]) -> None:
    from tpi_bench.host.disk import DirectReader
    from tpi_bench.host.memory import anonymous_area

    reader = DirectReader()
    try:
        reader.open(block.path for block in blocks)
        read_all(reader, blocks, anonymous_area(max(block.nbytes for block in blocks)))
    finally:
        reader.close()


class _Read(NamedTuple):
    """A read of one way, on average."""

    nbytes: float
    taken_ns: float


def _gap_and_rate(small: _Read, large: _Read) -> tuple[float, float]:
    """What each read takes besides its bytes, in ns, and bytes a ns.

    What small reads and large ones take differs by their bytes; the gap is what is left of the
    small ones. On a disk of ours reads of 1 to 16 MB lie within 2 % of such a line.
    """
    ratio = large.nbytes / small.nbytes
    gap_ns = max(ratio * small.taken_ns - large.taken_ns, 0.0) / (ratio - 1)
    gap_ns = min(gap_ns, small.taken_ns / 2, large.taken_ns / 2)
    return gap_ns, large.nbytes / (large.taken_ns - gap_ns)


def _in_turns(blocks: Sequence[Extent]) -> dict[str, _Read]:
    """What reads take, each way for a twentieth of a second at a time: all of them at once, as a
    point's probe does, two that are asked for, small and large, and large ones beside products.

    A disk of ours gives 1.8 to 2.8 GB/s, by stretches of half a second. One way after the other
    for so long, its rate was 0.68 to 1.04 of the probe's in nine rounds; in turns 0.98 to 1.04 in
    six.
    """
    import torch

    from tpi_bench.host.disk import DirectReader
    from tpi_bench.host.memory import anonymous_area

    torch.set_num_threads(1)
    area = anonymous_area(_AREA_BYTES)
    area.fill(0)
    products = endless_products()
    parts = [
        replace(block, offset=block.offset + start, nbytes=_PART_BYTES)
        for block in blocks
        for start in range(0, block.nbytes - _PART_BYTES + 1, _PART_BYTES)
    ]
    ways = {
        "probe": (blocks, len(blocks), None),
        "small": (parts, _QUEUED, None),
        "large": (blocks, _QUEUED, None),
        "computing": (blocks, _QUEUED, products),
    }
    following = {way: itertools.cycle(extents) for way, (extents, _, _) in ways.items()}
    taken_ns, read = dict.fromkeys(ways, 0), {way: list[int]() for way in ways}
    reader = DirectReader()
    try:
        reader.open(block.path for block in blocks)
        with torch.inference_mode():
            while sum(taken_ns.values()) < _TURNS_S * 1e9:
                for way, (_, queued, beside) in ways.items():
                    extents = list(_up_to(following[way], _TURN_BYTES))
                    begun_ns = time.monotonic_ns()
                    _read_queued(reader, area, extents, queued, beside)
                    taken_ns[way] += time.monotonic_ns() - begun_ns
                    read[way] += [extent.nbytes for extent in extents]
    finally:
        reader.close()
    return {way: _Read(statistics.fmean(read[way]), taken_ns[way] / len(read[way])) for way in ways}


def _up_to(extents: Iterator[Extent], most_bytes: int) -> Iterator[Extent]:
    """The next ones, at least one."""
    taken = 0
    while taken < most_bytes:
        extent = next(extents)
        taken += extent.nbytes
        yield extent


def _read_queued(
    reader: DirectReader,
    area: np.ndarray,
    extents: Sequence[Extent],
    queued: int,
    products: Iterator[object] | None,
) -> None:
    """So many are asked for at any time, with products meanwhile if there are any."""
    pending: deque[tuple[PendingRead, list[tuple[int, int]]]] = deque()
    place = 0
    for extent in extents:
        if len(pending) == queued:
            _await(reader, *pending.popleft(), products)
        place = place if place + extent.nbytes <= area.nbytes else 0
        ended: list[tuple[int, int]] = []
        out = area[place : place + extent.nbytes]
        pending.append((reader.read(extent, out, functools.partial(_note, ended)), ended))
        place += extent.nbytes
    while pending:
        _await(reader, *pending.popleft(), products)


def _note(ended: list[tuple[int, int]], start_ns: int, end_ns: int) -> None:
    ended.append((start_ns, end_ns))


def _await(
    reader: DirectReader,
    read: PendingRead,
    ended: Sequence[object],
    products: Iterator[object] | None,
) -> None:
    while products and not ended:
        next(products)
        reader.notice()
    read.wait()


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
