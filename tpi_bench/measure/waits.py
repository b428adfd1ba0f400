"""What a computation takes more where its device has waited: one round of a calibration.

For a peer, or for a read of the weights that it computes with. One device goes through the blocks
of a small model in turns: held in memory, the same with a rest behind each, and through a window.
What a turn takes longer, without its rests and waits, is what they cost, with the Python between
the blocks. On a host of ours a block that had just been read took some 45 us and 0.02 to 0.03 ns a
byte longer than in memory, however short the wait (blocks of 0.25 to 10.6 MB in four precisions).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.device import COLD_REST_NS
from tpi_bench.contract.job import Job, Output, Program
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.runtime import Span
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.plans import tensor_parallel
from tpi_bench.engine.streaming import WindowConfig, window_of
from tpi_bench.measure.program_costs import MODEL, traced_run

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime
    from tpi_bench.engine.device_model import DeviceModel

_HELD = ("q4", "float32")  # small blocks and large ones
_NUM_TURNS = 13
_LEAST_TURNS = 4  # where the disk is so slow
_MOST_NS = 5_000_000_000
_WAYS = ("held", "rested", "streamed")
_LEAST_NS_PER_BYTE = 1e-3
_IN_A_REST = 2  # computations that are cold behind it: what adds a block's result up, and the next


class _Turn(NamedTuple):
    """Through all blocks, in nanoseconds, without rests and waits."""

    taken_ns: int
    asking_ns: int  # for reads


class _Blocks(NamedTuple):
    """What is typical of a model's blocks, in nanoseconds each; `nbytes` is their mean size."""

    nbytes: float
    rested_ns: float
    streamed_ns: float
    asking_ns: float


def wait_costs(cache_dir: Path) -> dict[str, float]:
    """By the names of `DeviceProfile`. Raises ValueError where it cannot be run."""
    small, large = (_blocks(held, cache_dir) for held in _HELD)
    streamed_ns, streamed_gb_per_s = _line(small, large, small.streamed_ns, large.streamed_ns)
    asking_ns, asking_gb_per_s = _line(small, large, small.asking_ns, large.asking_ns)
    rested_ns = statistics.fmean([small.rested_ns, large.rested_ns])
    return {
        "read_overhead_us": asking_ns / 1e3,
        "asking_gb_per_s": asking_gb_per_s,
        "streamed_overhead_us": streamed_ns / 1e3,
        "streamed_gb_per_s": streamed_gb_per_s,
        "cold_overhead_us": max(rested_ns, 0.0) / _IN_A_REST / 1e3,
    }


def _blocks(held: str, cache_dir: Path) -> _Blocks:
    """Of the small model with matrices held so; its first turn of each way does not count."""
    model = replace(MODEL, weights=held).load(cache_dir)
    plan = tensor_parallel(model.config, [1.0])
    request = Request(prompt_ids=(0,), num_new_tokens=1)
    run = traced_run(_InTurns(), model, plan, request, cache_dir)
    turns = list(_turns(run.devices[0].spans))
    of_way = {way: [turn for each, turn in turns if each == way][1:] for way in _WAYS}
    parts = _through_a_window(run.job.blocks[0]).streamed_parts

    def of_a_block(times_ns: Iterable[int]) -> float:
        return statistics.median(times_ns) / len(parts)

    def more_ns(way: str) -> float:
        beside = zip(of_way["held"], of_way[way], strict=True)
        return of_a_block(turn.taken_ns - held.taken_ns for held, turn in beside)

    asking_ns = of_a_block(turn.asking_ns for turn in of_way["streamed"])
    return _Blocks(
        nbytes=statistics.fmean(part.nbytes for part in parts),
        rested_ns=more_ns("rested"),
        streamed_ns=more_ns("streamed") - asking_ns,
        asking_ns=asking_ns,
    )


def _line(small: _Blocks, large: _Blocks, small_ns: float, large_ns: float) -> tuple[float, float]:
    """What blocks take besides their bytes, in nanoseconds, and bytes a nanosecond."""
    ns_per_byte = (large_ns - small_ns) / (large.nbytes - small.nbytes)
    ns_per_byte = max(ns_per_byte, _LEAST_NS_PER_BYTE)
    return max(small_ns - small.nbytes * ns_per_byte, 0.0), 1 / ns_per_byte


@dataclass(frozen=True)
class _InTurns(Program):
    """Through the blocks of one device, each way in turns; a span that bears its name begins it."""

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation:
        from tpi_bench.engine.device_model import DeviceModel

        blocks = job.blocks[rt.rank]
        held = DeviceModel(rt, job, Streaming.of_all(blocks))
        streamed = DeviceModel(rt, job, _through_a_window(blocks))
        ways: dict[str, Callable[[], object]] = {
            "held": lambda: _step(held, lambda partial: partial),
            "rested": lambda: _step(held, rest),
            "streamed": lambda: _step(streamed, lambda partial: partial),
        }

        def rest(partial: torch.Tensor) -> torch.Tensor:
            rt.compute(("rest",), lambda: rt.sleep(COLD_REST_NS))
            return partial

        begun_ns, turn = rt.now(), 0
        while turn < _LEAST_TURNS or (turn < _NUM_TURNS and rt.now() - begun_ns < _MOST_NS):
            turn += 1
            for way in _WAYS:
                rt.compute((way,), lambda: None)
                ways[way]()
        rt.compute(("end",), lambda: None)
        streamed.window.close()
        return Generation(token_ids=[], request_ns=0, token_ns=[], account=[])


def _through_a_window(blocks: Sequence[BlockFile]) -> Streaming:
    return window_of(blocks, WindowConfig(size=2))


def _step(model: DeviceModel, combine: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """One position, the same each time."""
    model.logits(model.layers(model.embed([0]), 0, combine))


def _turns(spans: Sequence[Span]) -> Iterator[tuple[str, _Turn]]:
    """The way of each turn, and what it took."""
    own = sorted((each for each in spans if each.kind != "read"), key=lambda each: each.start_ns)
    begins = [number for number, each in enumerate(own) if each.key in (*_WAYS, "end")]
    for first, last in itertools.pairwise(begins):
        idle_ns = asking_ns = 0
        for each in own[first + 1 : last]:
            lasted_ns = each.end_ns - each.start_ns
            asking_ns += lasted_ns * (each.key == "request")
            is_idle = each.key == "rest" or (each.kind == "load_wait" and each.key != "request")
            idle_ns += lasted_ns * is_idle
        taken_ns = own[last].start_ns - own[first].end_ns - idle_ns
        yield own[first].key, _Turn(taken_ns, asking_ns)
