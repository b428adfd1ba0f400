"""What a rank program takes besides its computations: one round of a calibration (`calibrate.py`).

The engine itself runs on two devices of this host, on a small model, and its spans are looked at:
what sending and receiving take, and what Python takes between them. All of it takes longer behind
a long computation: on a host of ours Python took 40 to 160 us there, where it takes 8 in a token,
and asking for a read 116, where it takes 58. That the caches are swept by then is likely, and was
not isolated. What waits cost is measured by `waits.py`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.job import DeviceReport, Job, Outcome, Output, Program
from tpi_bench.contract.model import WEIGHTS, Model
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.runtime import Span
from tpi_bench.contract.system import System
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host.fork import in_helper
from tpi_bench.measure.blocks import made_blocks
from tpi_bench.measure.probe import disk_passes
from tpi_bench.models.sources import SyntheticModel
from tpi_bench.processes.launcher import run_job

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import Runtime

MODEL = SyntheticModel(
    name="calibration",
    num_layers=8,
    hidden=576,
    num_heads=9,
    num_kv_heads=3,
    intermediate=1536,
    vocab=1024,
    context_length=256,
    share_layers=True,
)
_NUM_DEVICES = 2
_NUM_STREAMED_TOKENS = 16
_NUM_HELD_TOKENS = 48  # which take less time each
_LEAST_TOKENS = 4  # where the disk is so slow
_MOST_DECODE_NS = 3_000_000_000
_KEPT_SHARE = 0.9  # the slowest tenth is somebody else's
_PEER_WAITS_NS = 20_000_000
_NUM_WAKES = 16
_PROMPT = tuple(range(1, 201))
_LARGE_BYTES = 4 * len(_PROMPT) * MODEL.hidden  # the hidden states that a prompt's messages hold
_LONG_NS = 1_000_000  # behind a computation so long it is slower


class EngineRun(NamedTuple):
    """Of the engine on devices of this host: a prompt and tokens."""

    job: Job
    outcome: Outcome
    probed_gb_per_s: float = math.nan  # of the disk, right before and after it

    @property
    def devices(self) -> list[DeviceReport]:
        return sorted(self.outcome.devices, key=lambda device: device.rank)

    @property
    def generation(self) -> Generation:
        assert self.outcome.generation is not None
        return self.outcome.generation

    @property
    def token_bytes(self) -> int:
        """That a token streams on all devices together."""
        assert isinstance(self.job.program, System)
        ranks = range(self.job.num_devices)
        return sum(self.job.program.streaming(self.job, rank).streamed_bytes for rank in ranks)


class EngineRuns(NamedTuple):
    """On two devices with weights in memory, and with a window of two; then with weights in another
    precision, in memory and, on one device, with a window of two.
    """

    held: EngineRun
    streamed: EngineRun
    held_in: EngineRun
    alone_in: EngineRun


def engine_runs(cache_dir: Path, weights: str = WEIGHTS[0]) -> EngineRuns:
    """The last two with weights held in `weights`. Raises ValueError where they cannot be run."""

    def run(window: int | None, num_devices: int, held: str = WEIGHTS[0]) -> EngineRun:
        model = replace(MODEL, weights=held).load(cache_dir)
        num_tokens = _NUM_STREAMED_TOKENS if window else _NUM_HELD_TOKENS
        request = Request(
            prompt_ids=_PROMPT,
            num_new_tokens=num_tokens,
            min_new_tokens=_LEAST_TOKENS,
            max_decode_ns=_MOST_DECODE_NS,
        )
        system = TpiSystem(name="tpi", collective="direct", window=window)
        plan = system.plan(model.config, Site(proportions=[1.0] * num_devices))
        blocks = made_blocks(model, plan, cache_dir)
        probed = [_probed_gb_per_s(blocks)]
        found = traced_run(system, model, plan, request, cache_dir)
        probed.append(_probed_gb_per_s(blocks))
        return found._replace(probed_gb_per_s=statistics.fmean(probed))

    held = run(None, _NUM_DEVICES)
    return EngineRuns(
        held=held,
        streamed=run(2, _NUM_DEVICES),
        held_in=held if weights == WEIGHTS[0] else run(None, _NUM_DEVICES, weights),
        alone_in=run(2, 1, weights),
    )


def _probed_gb_per_s(blocks: Sequence[Sequence[BlockFile]]) -> float:
    extents = [block.extent for own in blocks for block in own]
    return in_helper(disk_passes, extents).mean_bps / 1e9


def program_costs(runs: EngineRuns) -> dict[str, float]:
    """Microseconds, by the names of `DeviceProfile`. Raises ValueError where it cannot be run."""
    prompt, hot = _spans(runs.held)
    reading_prompt, reading = _spans(runs.streamed)
    sending_ns, asking_ns = _typical(_lengths(hot, "send")), _typical(_lengths(reading, "request"))
    step_ns = _typical(_gaps(hot))
    swept_ns = _lower_quartile(_gaps_behind_long(prompt)) - step_ns
    until_asked_ns = _lower_quartile(_until_asked_behind_long(reading_prompt))
    swept_asking_ns = until_asked_ns - step_ns - asking_ns
    receiving_ns = _lower_quartile(_lengths(hot, "recv"))  # of those that are there
    large_sending_ns = _typical(_lengths(prompt, "send"))
    large_receiving_ns = _lower_quartile(_lengths(prompt, "recv"))
    return {
        "message_overhead_us": sending_ns / 1e3,
        "receive_overhead_us": receiving_ns / 1e3,
        "message_gb_per_s": _copied_gb_per_s(large_sending_ns, sending_ns),
        "receive_gb_per_s": _copied_gb_per_s(large_receiving_ns, receiving_ns),
        "step_overhead_us": step_ns / 1e3,
        "swept_overhead_us": max(swept_ns, 0.0) / 1e3,
        "swept_read_overhead_us": max(swept_asking_ns, 0.0) / 1e3,
        "wake_overhead_us": max(0.0, _waking_ns() - sending_ns) / 1e3,
    }


def _spans(run: EngineRun) -> tuple[list[Span], list[Span]]:
    """Of the master: of the prompt, and of all tokens but the first."""
    spans = [span for span in run.devices[0].spans if span.kind != "read"]
    spans.sort(key=lambda span: span.start_ns)
    steps = [number for number, span in enumerate(spans) if span.key == "embed"]
    num_tokens = len(run.generation.token_ids)
    first, second = steps[-num_tokens], steps[1 - num_tokens]
    return spans[first:second], spans[second:]


def traced_run(
    program: Program,
    model: Model,
    plan: Plan | None,
    request: Request,
    cache_dir: Path | None = None,
) -> EngineRun:
    """With the spans of each device. Raises ValueError where it cannot be run."""
    job = Job(
        program=program,
        config=model.config,
        dtype=model.dtype,
        weights=model.weights,
        num_devices=_NUM_DEVICES if plan is None else plan.num_devices,
        plan=plan,
        blocks=[] if plan is None or cache_dir is None else made_blocks(model, plan, cache_dir),
        request=request,
        network=NetworkConfig(),
        threads_per_device=1,
        trace=True,
    )
    outcome = run_job(job)
    if outcome.generation is None:
        raise ValueError(f"this host could not be calibrated: {outcome.error}")
    return EngineRun(job, outcome)


def _lengths(spans: Sequence[Span], key: str) -> list[int]:
    return [span.end_ns - span.start_ns for span in spans if span.key == key]


def _gaps(spans: Sequence[Span]) -> list[int]:
    return [later.start_ns - earlier.end_ns for earlier, later in itertools.pairwise(spans)]


def _gaps_behind_long(spans: Sequence[Span]) -> list[int]:
    """Of long computations."""
    return [later.start_ns - earlier.end_ns for earlier, later in _behind_long(spans)]


def _until_asked_behind_long(spans: Sequence[Span]) -> list[int]:
    """From the end of each long computation to when the read has been asked for that follows."""
    return [
        later.end_ns - earlier.end_ns
        for earlier, later in _behind_long(spans)
        if later.key == "request"
    ]


def _behind_long(spans: Sequence[Span]) -> Iterator[tuple[Span, Span]]:
    """Each long computation, and what follows it."""
    for earlier, later in itertools.pairwise(spans):
        if earlier.kind == "compute" and earlier.end_ns - earlier.start_ns >= _LONG_NS:
            yield earlier, later


def _typical(values: Sequence[int]) -> float:
    """Mean without the slowest: a token is a sum of many, whose skew a median would lose."""
    ordered = sorted(values)
    return statistics.fmean(ordered[: max(1, round(_KEPT_SHARE * len(ordered)))])


def _copied_gb_per_s(large_ns: float, small_ns: float) -> float:
    """What a large message takes longer than a small one, copying takes; a tenth at least, where
    something else ran beside the small ones.
    """
    return _LARGE_BYTES / max(large_ns - small_ns, large_ns / 10)


def _lower_quartile(values_ns: Sequence[int]) -> int:
    """Of what often has to wait: for a message, or for the core, which others take behind long
    computations.
    """
    return sorted(values_ns)[len(values_ns) // 4]


@dataclass(frozen=True)
class _Wakes(Program):
    """Rank 0 is busy, then sends to rank 1, which has slept meanwhile."""

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation:
        import torch

        message = torch.zeros(job.config.hidden)
        for _ in range(_NUM_WAKES):
            if rt.rank == 0:
                rt.compute(("busy",), lambda: _stay_busy(rt))
                rt.send(1, message)
            else:
                rt.recv(0, message)
        return Generation(token_ids=[], request_ns=0, token_ns=[], account=[])


def _stay_busy(rt: Runtime) -> None:
    end_ns = rt.now() + _PEER_WAITS_NS
    while rt.now() < end_ns:
        pass


def _waking_ns() -> float:
    model = MODEL.load(Path())
    request = Request(prompt_ids=(0,), num_new_tokens=1)
    run = traced_run(_Wakes(), model, None, request)
    return _typical(_lengths(run.devices[0].spans, "send")[1:])
