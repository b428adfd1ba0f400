"""Rates of this host's cores, one round of a calibration (`calibrate.py`).

All are those of the engine's own products.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import (
    DTYPES,
    FEW,
    WEIGHTS,
    Rope,
    resolve_types,
)
from tpi_bench.contract.plan import Shard
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure.at_once import together
from tpi_bench.measure.matrices import (
    COLUMNS,
    Shape,
    cut,
    matrices_of,
    shape_of,
    shapes_of,
    stored_ones,
)
from tpi_bench.measure.probe import seconds

if TYPE_CHECKING:
    import torch

    from tpi_bench.engine.attention import Attention
    from tpi_bench.engine.matrix import Matrix

_PASSES = 3
_SWEPT_PASSES = 9  # of what is timed behind a product
_MEMORY_BYTES = 256 << 20
_MATRIX_BYTES = 4 << 20
_SWEPT_BYTES = 1 << 20
_SMALL_BYTES = 256 << 10  # of a matrix: what a call costs besides counts
_ROWS = (16, 128)  # of prompts: more than kernels take
_MOST_ROWS = 1000  # that are taken to compute while the weights of one are read
_FEW_MATRICES = 8  # are enough where it is arithmetic that takes time
_HEADS, _POSITIONS, _HEAD_DIM = 16, 128, 64  # of attention: what takes about a millisecond
_KV_HEADS, _CACHED, _CACHES = 4, 512, 64  # what all of them hold is in no cache of a core
_GATED = 1536  # of each position of a prompt
_COMPUTING_S = 0.6
_MOST_DEVICES = 4  # that compute at once: more of them do not get more out of a memory


def _times(fn: Callable[[], object]) -> list[float]:
    """Seconds of a few calls, after one that does not count."""
    fn()
    return [seconds(fn) for _ in range(_PASSES)]


def compute_rates(threads: int) -> dict[str, float]:
    """The engine's products with a vector and with a prompt's rows in each precision, attention
    over a prompt and of one position, and what an operator costs besides.
    """
    import torch

    _prepare(threads)
    found: dict[str, float] = {}
    with torch.inference_mode():
        overheads_s = _overheads_s() | {"product": _product_overhead_s()}
        for held in WEIGHTS:
            is_half = resolve_types("auto", held)[0] != DTYPES[0]
            found |= _products(held, overheads_s["product"] + is_half * overheads_s["half"])
        for dtype in DTYPES:
            half_s = (dtype != DTYPES[0]) * overheads_s["half"]
            before_bps, memory_bps = (
                found[f"{name}_gb_per_s"] * 1e9 for name in (f"{dtype}_rows", "memory")
            )
            prefill = _attention_flops_per_s(dtype, overheads_s["op"] + half_s, before_bps)
            overhead_s = overheads_s["attention"] + half_s
            decode = _decode_attention_flops_per_s(dtype, overhead_s, memory_bps)
            found[f"{dtype}_attention_gflops"] = prefill / 1e9
            states_bps = _states_bytes_per_s(dtype, overheads_s["op"] + half_s)
            found[f"{dtype}_states_gb_per_s"] = states_bps / 1e9
            found[f"{dtype}_decode_attention_gflops"] = decode / 1e9
    return found | {f"{name}_overhead_us": s * 1e6 for name, s in overheads_s.items()}


def product_rates(
    threads: int, held: str, overhead_s: float, shapes: Sequence[Shape]
) -> dict[str, float]:
    """Of `compute_rates`, those of products with matrices held in `held`: of this moment.

    Those with several rows are of matrices of `shapes` (o, i), or of the first rows of large ones:
    on a host of ours as many bytes took 0.7 to 1.2 of the time of others, by how wide they were (8
    rows). With one vector they took the same within 8 %, and that rate is of large ones, whose
    calls count for little.
    """
    import torch

    _prepare(threads)
    with torch.inference_mode():
        parts = [cut(held, shape, _MEMORY_BYTES // len(shapes)) for shape in shapes]
        found = _products(held, overhead_s, parts)
        if shapes:
            matrices = _alike(held, _MATRIX_BYTES)
            reading_s = _beside(overhead_s, _call_s(matrices, held, 1))
            found[_names(held)[0]] = matrices[0].nbytes / reading_s / 1e9
        return found


def products_of(job: Job, profile: DeviceProfile) -> tuple[int, str, float, tuple[Shape, ...]]:
    """What `product_rates` is asked for the products of a job's devices of that profile."""
    return profile.cores, job.weights, profile.overhead_s(job.dtype, "product"), shapes_of(job)


def _prepare(threads: int) -> None:
    """As devices are."""
    import torch

    from tpi_bench.engine.matrix import prepare_kernels
    from tpi_bench.host.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    prepare_kernels()


def _products(
    held: str, overhead_s: float, shapes: Sequence[Shape] | None = None
) -> dict[str, float]:
    """Bytes a second of matrices times one vector and times several rows, and arithmetic a second.

    The matrices are of these shapes in turns, or of a block's size, and so many that none is in a
    cache. What a call costs besides is left out. What 16 and many rows take differs by their
    arithmetic; the rest is what the bytes take with any number of them, which the roofline adds
    (`contract/roofline.py`).
    """
    shapes = shapes or [shape_of(held, _MATRIX_BYTES)]
    matrices = matrices_of(held, shapes, _MEMORY_BYTES)
    num_turns = len(matrices) // len(shapes)

    def call_s(num_rows: int, num_matrices: int) -> float:
        return _beside(overhead_s, _call_s(matrices[:num_matrices], held, num_rows))

    few, many = _ROWS
    reading_s, eight_s, few_s = (call_s(number, len(matrices)) for number in (1, FEW, few))
    enough = len(shapes) * min(-(-_FEW_MATRICES // len(shapes)), num_turns)
    many_s = call_s(many, enough)  # their bytes count for little
    row_s = (many_s - few_s) / (many - few)
    if row_s <= 0:  # something else ran meanwhile: a row costs no more than this
        row_s = many_s / many
    before_s = max(few_s - few * row_s, few_s / 2)
    nbytes = sum(matrix.nbytes for matrix in matrices) / len(matrices)
    flops = 2 * sum(math.prod(shape) for shape in shapes) / len(shapes)
    further_s = max((eight_s - reading_s) / (FEW - 1), reading_s / _MOST_ROWS)
    reading, arithmetic = _names(held)
    return {
        reading: nbytes / reading_s / 1e9,
        arithmetic: flops / row_s / 1e9,
        f"{held}_rows_gb_per_s": nbytes / before_s / 1e9,
        f"{held}_few_gflops": flops / further_s / 1e9,
    }


def _names(held: str) -> tuple[str, str]:
    """Of a profile's rates of products with one vector and with many."""
    if held == WEIGHTS[0]:
        return "memory_gb_per_s", "peak_gflops"
    return f"{held}_gb_per_s", f"{held}_gflops"


def _beside(overhead_s: float, taken_s: float) -> float:
    """What a call took besides, and half of it at least."""
    return max(taken_s - overhead_s, taken_s / 2)


def _attention_flops_per_s(dtype: str, overhead_s: float, before_bps: float) -> float:
    """Of a prompt's attention, beside what its bytes take: on a host of ours about the same for 64
    and for 256 positions, and less than of products.
    """
    import torch

    from tpi_bench.engine.attention import attend_piece

    queries = torch.ones(_HEADS, _POSITIONS, _HEAD_DIM, dtype=getattr(torch, dtype))
    taken_s = _in_a_prompt_s(lambda: attend_piece(queries, queries, queries, 0))
    computing_s = taken_s - overhead_s - 4 * queries.nbytes / before_bps
    return 4 * queries.numel() * _POSITIONS / max(computing_s, taken_s / 2)


def _states_bytes_per_s(dtype: str, overhead_s: float) -> float:
    """Of a gate's two operators: one reads a half and writes it, the other reads both and writes.

    It stands for all operators on states: what they take differs, by what they compute.
    """
    import torch

    from tpi_bench.engine.one_position import gate

    both = torch.ones(_POSITIONS, 2 * _GATED, dtype=getattr(torch, dtype))
    taken_s = _in_a_prompt_s(lambda: gate(both))
    return 2.5 * both.nbytes / max(taken_s - 2 * overhead_s, taken_s / 2)


def _in_a_prompt_s(fn: Callable[[], object]) -> float:
    """What a call takes where it stands in a prompt, behind a product of a prompt's rows: on a host
    of ours attention took a tenth longer there than again and again, a gate 1.6 to 2 times as long.
    """
    import torch

    from tpi_bench.engine.matrix import Matrix

    product = Matrix(*stored_ones(WEIGHTS[0], shape_of(WEIGHTS[0], _MATRIX_BYTES)))
    rows = torch.ones(_POSITIONS, COLUMNS)
    taken_s = []
    for _ in range(1 + _SWEPT_PASSES):
        product(rows)
        taken_s.append(seconds(fn))
    return statistics.median(taken_s[1:])


def _decode_attention_flops_per_s(dtype: str, overhead_s: float, memory_bps: float) -> float:
    """Of one position's attention over a cache that comes from memory, beside its bytes."""
    layers, qkv = _attentions(dtype)

    def sweep() -> None:
        for layer in layers:
            layer(qkv, _CACHED - 1)

    taken_s = statistics.median(_times(sweep)) / len(layers)
    computing_s = taken_s - overhead_s - layers[0].cache.nbytes / memory_bps
    return 4 * _HEADS * _CACHED * _HEAD_DIM / max(computing_s, taken_s / 4)


def _attentions(dtype: str) -> tuple[list[Attention], torch.Tensor]:
    """Of layers that have a cache each, and what they are given of a position."""
    import torch

    from tpi_bench.engine.attention import Attention, HeadMap, RotaryTable

    shard = Shard(kind="attn", layer=0, heads=(0, _HEADS), kv_heads=(0, _KV_HEADS))
    heads, rotary = HeadMap(shard, _HEADS // _KV_HEADS), RotaryTable(Rope(), _HEAD_DIM, _CACHED)
    typed = getattr(torch, dtype)
    layers = [Attention(heads, rotary, _HEAD_DIM, _CACHED, typed) for _ in range(_CACHES)]
    for layer in layers:  # else all of it is one page of zeros
        layer.cache.keys.fill_(1)
        layer.cache.values.fill_(1)
    return layers, torch.ones(1, (_HEADS + 2 * _KV_HEADS) * _HEAD_DIM, dtype=typed)


def _overheads_s() -> dict[str, float]:
    """Of a small operator of the engine, what it takes more in half precision, where kernels are
    given fp32 and give it, and of attention over hardly any cache: each behind a product, which
    leaves less in the caches.

    One after the other a thousand would take a part of it. One of torch's own takes about a third;
    a token has few.
    """
    import torch

    from tpi_bench.engine.matrix import Matrix
    from tpi_bench.engine.one_position import rms_norm

    product = Matrix(*stored_ones(WEIGHTS[0], shape_of(WEIGHTS[0], _SWEPT_BYTES)))
    vector, plain, weight = torch.ones(1, COLUMNS), torch.ones(1, 64), torch.ones(64)
    half = plain.bfloat16()
    layers, qkv = _attentions(DTYPES[0])

    def behind_a_product_s(fn: Callable[[], object]) -> float:
        product(vector)
        return seconds(fn)

    turns = [
        (
            behind_a_product_s(lambda: rms_norm(plain, weight, 1e-5)),
            behind_a_product_s(lambda: rms_norm(half, weight, 1e-5)),
            behind_a_product_s(lambda layer=layer: layer(qkv, 0)),  # type: ignore[misc]
        )
        for layer in layers
    ][1:]
    more_s = statistics.median(half_s - plain_s for plain_s, half_s, _ in turns)
    return {
        "op": statistics.median(plain_s for plain_s, _, _ in turns),
        "half": max(more_s, 0.0),
        "attention": statistics.median(attention_s for _, _, attention_s in turns),
    }


def _product_overhead_s() -> float:
    """Of a product besides its bytes: what calls with small and with large matrices take differs by
    those.
    """
    small_s, large_s = (
        _call_s(_alike(WEIGHTS[0], nbytes), WEIGHTS[0], 1)
        for nbytes in (_SMALL_BYTES, _MATRIX_BYTES)
    )
    ratio = _MATRIX_BYTES / _SMALL_BYTES
    return max((ratio * small_s - large_s) / (ratio - 1), 0.0)


def _alike(held: str, nbytes: int) -> list[Matrix]:
    """Of so many bytes each, and so many that none is in a cache."""
    return matrices_of(held, [shape_of(held, nbytes)], _MEMORY_BYTES)


def _call_s(matrices: Sequence[Matrix], held: str, num_rows: int) -> float:
    """Of a product with one of them."""
    import torch

    dtype = getattr(torch, resolve_types("auto", held)[0])
    widths = {matrix.shape[1] for matrix in matrices}
    rows = {width: torch.ones(num_rows, width, dtype=dtype) for width in widths}

    def sweep() -> None:
        for matrix in matrices:
            matrix(rows[matrix.shape[1]])

    return statistics.median(_times(sweep)) / len(matrices)


def shared_memory_rate() -> dict[str, float]:
    """Bytes a second of all devices together that compute at once, each with a core of its own.

    Empty where there is one core.
    """
    cpus = available_cpus()[:_MOST_DEVICES]
    if len(cpus) == 1:
        return {}
    products_per_ns = together(_product_ends_ns, [(cpu,) for cpu in cpus], _COMPUTING_S)
    return {"memory_shared_gb_per_s": products_per_ns * _MATRIX_BYTES}


def _product_ends_ns(cpu: int) -> list[int]:
    """When products with a vector ended, one after another for a while, of the host's clock.

    It stays on its core, so that no two share one.
    """
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})
    torch.set_num_threads(1)
    products = endless_products()
    ends = [time.monotonic_ns()]
    with torch.inference_mode():
        while ends[-1] - ends[0] < _COMPUTING_S * 1e9:
            next(products)
            ends.append(time.monotonic_ns())
    return ends


def endless_products() -> Iterator[torch.Tensor]:
    """Products with a vector, for ever, of matrices that lie in memory and in no cache.

    They are there before the first product: making one took up to 10 ms on a host of ours.
    """
    import torch

    from tpi_bench.engine.matrix import prepare_kernels

    prepare_kernels()
    matrices = _alike(WEIGHTS[0], _MATRIX_BYTES)
    vector = torch.ones(1, COLUMNS)
    return (matrix(vector) for matrix in itertools.cycle(matrices))
