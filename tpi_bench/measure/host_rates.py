"""Rates of this host's cores and disk, one round of a calibration (`calibrate.py`).

All rates of computing are those of the engine's own products.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.contract.blocks import PAGE, Extent
from tpi_bench.contract.model import DTYPES, FEW, GROUP, WEIGHTS, resolve_types
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure.probe import read_all, seconds
from tpi_bench.models.sharder import shard_folders

if TYPE_CHECKING:
    import torch

    from tpi_bench.host.disk import PendingRead

_PASSES = 3
_MEMORY_BYTES = 256 << 20
_MATRIX_BYTES = 4 << 20
_SWEPT_BYTES = 8 << 20
_COLUMNS = 1024
_ROWS = (16, 128)  # of prompts: more than kernels take
_MOST_ROWS = 1000  # that are taken to compute while the weights of one are read
_FEW_MATRICES = 8  # are enough where it is arithmetic that takes time
_HEADS, _POSITIONS, _HEAD_DIM = 16, 128, 64  # of attention: what takes about a millisecond
_SMALL_OPERATORS = 32
_DISK_BYTES = 256 << 20
_BLOCK_BYTES = 4 << 20
_PART_BYTES = 1 << 20  # of a block: so small that the gap behind it counts
_QUEUED = 2  # reads, as a window of two has: the one that is waited for, and the next
_READERS = 2
_READING_S = 0.4
_LEAST_READS = 8  # of a disk so slow that the time is over before
_COMPUTING_S = 0.6
_TRIES = 5
_MOST_DEVICES = 4  # that compute at once: more of them do not get more out of a memory


def _times(fn: Callable[[], object]) -> list[float]:
    """Seconds of a few calls, after one that does not count."""
    fn()
    return [seconds(fn) for _ in range(_PASSES)]


def compute_rates(threads: int) -> dict[str, float]:
    """The engine's products with a vector and with a prompt's rows in each precision, attention
    over a prompt, and what an operator costs besides.
    """
    import torch

    from tpi_bench.engine.matrix import prepare_kernels
    from tpi_bench.host.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()  # as devices do
    prepare_kernels()
    found: dict[str, float] = {}
    with torch.inference_mode():
        overhead_us = _overhead_us()
        for held in WEIGHTS:
            found |= _products(held, overhead_us * 1e-6)
        for dtype in DTYPES:
            before_bps = found[f"{dtype}_rows_gb_per_s"] * 1e9
            flops_per_s = _attention_flops_per_s(dtype, overhead_us * 1e-6, before_bps)
            found[f"{dtype}_attention_gflops"] = flops_per_s / 1e9
    return found | {"op_overhead_us": overhead_us}


def _products(held: str, overhead_s: float) -> dict[str, float]:
    """Bytes a second of matrices times one vector and times several rows, and arithmetic a second.

    The matrices are of a block's size, and so many that none is in a cache. What a call costs
    besides is left out. What 16 and many rows take differs by their arithmetic; the rest is what
    the bytes take with any number of them, which the roofline adds (`contract/device.py`).
    """
    import torch

    from tpi_bench.engine.matrix import Matrix

    dtype = getattr(torch, resolve_types("auto", held)[0])
    stored = [_stored(held, _MATRIX_BYTES) for _ in range(_MEMORY_BYTES // _MATRIX_BYTES)]
    nbytes = sum(tensor.nbytes for tensor in stored[0])
    matrices = [Matrix(*map(_as_on_a_device, tensors)) for tensors in stored]

    def call_s(num_rows: int, num_matrices: int) -> float:
        rows = torch.ones(num_rows, _COLUMNS, dtype=dtype)

        def sweep() -> None:
            for matrix in matrices[:num_matrices]:
                matrix(rows)

        taken_s = statistics.median(_times(sweep)) / num_matrices
        return max(taken_s - overhead_s, taken_s / 2)

    few, many = _ROWS
    reading_s, eight_s, few_s = (call_s(number, len(matrices)) for number in (1, FEW, few))
    many_s = call_s(many, min(_FEW_MATRICES, len(matrices)))  # their bytes count for little
    row_s = (many_s - few_s) / (many - few)
    if row_s <= 0:  # something else ran meanwhile: a row costs no more than this
        row_s = many_s / many
    before_s = max(few_s - few * row_s, few_s / 2)
    flops = 2 * matrices[0].shape[0] * matrices[0].shape[1]
    further_s = max((eight_s - reading_s) / (FEW - 1), reading_s / _MOST_ROWS)
    names = ("memory_gb_per_s", "peak_gflops")
    if held != WEIGHTS[0]:
        names = (f"{held}_gb_per_s", f"{held}_gflops")
    return {
        names[0]: nbytes / reading_s / 1e9,
        names[1]: flops / row_s / 1e9,
        f"{held}_rows_gb_per_s": nbytes / before_s / 1e9,
        f"{held}_few_gflops": flops / further_s / 1e9,
    }


def _attention_flops_per_s(dtype: str, overhead_s: float, before_bps: float) -> float:
    """Of a prompt's attention, beside what its bytes take: on a host of ours about the same for 64
    and for 256 positions, and less than of products.
    """
    import torch

    from tpi_bench.engine.attention import attend_piece

    queries = torch.ones(_HEADS, _POSITIONS, _HEAD_DIM, dtype=getattr(torch, dtype))
    taken_s = statistics.median(_times(lambda: attend_piece(queries, queries, queries, 0)))
    computing_s = taken_s - overhead_s - 4 * queries.nbytes / before_bps
    return 4 * queries.numel() * _POSITIONS / max(computing_s, taken_s / 2)


def _overhead_us() -> float:
    """Of a small operator of the engine that follows a product, which leaves little in the caches.

    One after the other a thousand would take a part of it. One of torch's own takes about a fifth;
    a token, where overheads count, has hardly any.
    """
    import torch

    from tpi_bench.engine.matrix import Matrix
    from tpi_bench.engine.one_position import rms_norm

    product = Matrix(*_stored(WEIGHTS[0], _SWEPT_BYTES))
    vector, few, weight = torch.ones(1, _COLUMNS), torch.ones(1, 64), torch.ones(64)

    def small_s() -> float:
        product(vector)
        return seconds(lambda: rms_norm(few, weight, 1e-5))

    small_s()
    return 1e6 * statistics.median(small_s() for _ in range(_SMALL_OPERATORS))


def shared_memory_rate() -> dict[str, float]:
    """Bytes a second of all devices together that compute at once, each with a core of its own.

    Empty where there is one core.
    """
    cpus = available_cpus()[:_MOST_DEVICES]
    if len(cpus) == 1:
        return {}
    products_per_ns = _together(_product_ends_ns, [(cpu,) for cpu in cpus], _COMPUTING_S)
    return {"memory_shared_gb_per_s": products_per_ns * _MATRIX_BYTES}


def _together(
    fn: Callable[..., list[int]], given: Sequence[tuple[Any, ...]], take_s: float
) -> float:
    """How much a nanosecond all get done together that call `fn` in a process each, while all do.

    A call is as `_at_once` wants it.
    """
    ends, begin, end = _at_once(fn, given, take_s)
    return sum(begin < ns <= end for each in ends for ns in each) / (end - begin)


def _at_once(
    fn: Callable[..., list[int]], given: Sequence[tuple[Any, ...]], take_s: float
) -> tuple[list[list[int]], int, int]:
    """What each process said that called `fn`, and between which times all did.

    A call says when it began and when each thing was done, of the host's clock, and takes `take_s`.
    """
    for _ in range(_TRIES):
        with ThreadPoolExecutor(len(given)) as pool:
            ends = list(pool.map(lambda each: in_helper(fn, *each), given))
        begin, end = max(each[0] for each in ends), min(each[-1] for each in ends)
        if end - begin > take_s * 1e9 / 2:
            return ends, begin, end
    raise ValueError(
        f"this host could not be calibrated: of {len(given)} processes one began when another had "
        "nearly ended, several times; something else keeps it busy"
    )


def _product_ends_ns(cpu: int) -> list[int]:
    """When products with a vector ended, one after another for a while, of the host's clock.

    It stays on its core, so that no two share one.
    """
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})
    torch.set_num_threads(1)
    products = _endless_products()
    ends = [time.monotonic_ns()]
    with torch.inference_mode():
        while ends[-1] - ends[0] < _COMPUTING_S * 1e9:
            next(products)
            ends.append(time.monotonic_ns())
    return ends


def _endless_products() -> Iterator[torch.Tensor]:
    """Products with a vector, for ever, of matrices that lie in memory and in no cache.

    They are there before the first product: making one took up to 10 ms on a host of ours.
    """
    import torch

    from tpi_bench.engine.matrix import Matrix, prepare_kernels

    prepare_kernels()
    stored = [_stored(WEIGHTS[0], _MATRIX_BYTES) for _ in range(_MEMORY_BYTES // _MATRIX_BYTES)]
    matrices = [Matrix(*map(_as_on_a_device, tensors)) for tensors in stored]
    vector = torch.ones(1, _COLUMNS)
    return (matrix(vector) for matrix in itertools.cycle(matrices))


def _as_on_a_device(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory of the kind that weights of a device lie in: huge pages."""
    import torch

    from tpi_bench.host.memory import anonymous_area

    room = torch.from_numpy(anonymous_area(tensor.nbytes)).view(tensor.dtype).view(tensor.shape)
    return room.copy_(tensor)


def _stored(held: str, nbytes: int) -> list[torch.Tensor]:
    """A matrix of about so many bytes as block files hold it: its values, and scales if it has."""
    import torch

    shape = nbytes // _COLUMNS, _COLUMNS
    if held == "q8":
        scales = torch.ones(shape[0], _COLUMNS // GROUP, dtype=torch.float16)
        return [torch.ones(shape, dtype=torch.int8), scales]
    if held == "q4":
        scales = torch.ones(2 * shape[0], _COLUMNS // GROUP, dtype=torch.float16)
        return [torch.ones(2 * shape[0], _COLUMNS // 2, dtype=torch.uint8), scales]
    dtype: torch.dtype = getattr(torch, held)
    return [torch.ones(shape[0] // dtype.itemsize, _COLUMNS, dtype=dtype)]


def disk_rates(cache_dir: Path) -> dict[str, float]:
    """Direct reads: one reader that does nothing else, one whose core computes, several that do
    nothing else, and single pages; of those that do nothing else also the gap between two reads.

    Of block files that are there, those of one model, by chance: so rounds differ as models do. On
    a disk of ours files were read at 3.3 or at 3.9 GB/s, each at a rate of its own, and what was
    just written at the higher. Where there are too few, a file is written.
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
    gap_ns, gb_per_s = _gap_and_rate([blocks])
    read_ns = 1 / _together(_read_ends_ns, [(blocks, True)], _READING_S)
    computing_ns = max(read_ns - gap_ns, read_ns / 2)
    found = {
        "disk_gb_per_s": gb_per_s,
        "disk_gap_us": gap_ns / 1e3,
        "disk_latency_us": in_helper(_page_s, blocks) * 1e6,
        "disk_computing_gb_per_s": _BLOCK_BYTES / computing_ns,
    }
    if len(available_cpus()) > 1:  # each reads blocks of its own, as devices do
        half = len(blocks) // _READERS
        shared = _gap_and_rate([blocks[reader * half :][:half] for reader in range(_READERS)])
        found["disk_shared_gap_us"] = shared[0] / 1e3
        found["disk_shared_gb_per_s"] = shared[1]
    return found


def _gap_and_rate(readers: Sequence[Sequence[Extent]]) -> tuple[float, float]:
    """What each read takes besides its bytes, in ns, and bytes a ns, of all readers together.

    What small reads and large ones take differs by their bytes; the gap is what is left of the
    small ones.
    """
    small_ns, large_ns = _one_by_one(readers[0]) if len(readers) == 1 else _side_by_side(readers)
    ratio = _BLOCK_BYTES / _PART_BYTES
    gap_ns = max(ratio * small_ns - large_ns, 0.0) / (ratio - 1)
    gap_ns = min(gap_ns, small_ns / 2, large_ns / 2)
    return gap_ns, _BLOCK_BYTES / (large_ns - gap_ns)


def _one_by_one(blocks: Sequence[Extent]) -> tuple[float, float]:
    """What a small and a large read take, in turns, as a disk's rate drifts."""
    turns = [part for block in blocks for part in (_part_of(block), block)]
    ends = in_helper(_read_ends_ns, turns, False)
    taken_ns = [after - before for before, after in itertools.pairwise(ends)]
    return statistics.median(taken_ns[::2]), statistics.median(taken_ns[1::2])


def _side_by_side(readers: Sequence[Sequence[Extent]]) -> tuple[float, float]:
    """What a small and a large read take, of all readers together: first all read small ones, as a
    small read waits for a large one of another.
    """
    parts = [[_part_of(block) for block in blocks] for blocks in readers]
    small, large = (
        _together(_read_ends_ns, [(each, False) for each in those], _READING_S)
        for those in (parts, readers)
    )
    return 1 / small, 1 / large


def _part_of(block: Extent) -> Extent:
    return replace(block, nbytes=_PART_BYTES)


def _models_blocks(cache_dir: Path) -> Iterator[list[Extent]]:
    """Blocks of the files of each model that has enough of them."""
    for folder in shard_folders(cache_dir).glob("*"):
        blocks = _cut(sorted(folder.glob("*.safetensors")))
        if len(blocks) * _BLOCK_BYTES >= _DISK_BYTES / 2:
            yield blocks


def _cut(paths: Iterable[Path]) -> list[Extent]:
    """Blocks of these files, no more than are read once."""
    found = (
        Extent(str(path), start, _BLOCK_BYTES)
        for path in paths
        for start in range(0, path.stat().st_size - _BLOCK_BYTES + 1, _BLOCK_BYTES)
    )
    return list(itertools.islice(found, _DISK_BYTES // _BLOCK_BYTES))


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
    products = _endless_products() if computes else None
    each_bytes = max(block.nbytes for block in blocks)
    area = anonymous_area(_QUEUED * each_bytes)
    area.fill(0)
    reader = DirectReader()
    reader.open(block.path for block in blocks)
    pending: deque[tuple[PendingRead, list[int]]] = deque()
    num_asked = 0

    def ask() -> None:
        nonlocal num_asked
        block = blocks[num_asked % len(blocks)]
        place = num_asked % _QUEUED * each_bytes
        ended: list[int] = []
        read = reader.read(block, area[place : place + block.nbytes], lambda a, b: ended.append(b))
        pending.append((read, ended))
        num_asked += 1

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
