"""What a rank program takes besides its computations: one round of a calibration (`calibrate.py`).

The engine itself runs on two devices of this host, on a small model, and its spans are looked at:
what sending and receiving take, what Python takes between them, and how much longer all of it takes
after a wait, when caches and clock have cooled down.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpi_bench.contract.job import DeviceReport, Job, Output, Program
from tpi_bench.contract.model import Model
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.runtime import Span
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.measure.blocks import made_blocks
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
    context_length=128,
    share_layers=True,
)
_NUM_DEVICES = 2
_NUM_TOKENS = 16
_HOP_MS = 2.0  # of links, for what is cold
_KEPT_SHARE = 0.9  # the slowest tenth is somebody else's
_PEER_WAITS_NS = 20_000_000
_NUM_WAKES = 16
_LARGE_BYTES = 460_800  # the hidden states of a prompt of 200, of width 576
_NUM_LARGE = 64


def program_costs(cache_dir: Path) -> dict[str, float]:
    """Microseconds, by the names of `DeviceProfile`. Raises ValueError where it cannot be run."""
    model = MODEL.load(cache_dir)
    hot = _spans(model, NetworkConfig(), cache_dir)
    cold = _spans(model, NetworkConfig(topology="switch", link_latency_ms=_HOP_MS), cache_dir)
    sending_ns = _typical(_lengths(hot, "send"))
    colder = [
        _typical(_lengths(cold, key)) - _typical(_lengths(hot, key)) for key in ("attn", "ffn")
    ]
    receiving_ns = _of_those_there(_lengths(hot, "recv"))
    large_sending_ns, large_receiving_ns = _copying_ns()
    return {
        "message_overhead_us": sending_ns / 1e3,
        "receive_overhead_us": receiving_ns / 1e3,
        "message_gb_per_s": _copied_gb_per_s(large_sending_ns, sending_ns),
        "receive_gb_per_s": _copied_gb_per_s(large_receiving_ns, receiving_ns),
        "step_overhead_us": _typical(_gaps(hot)) / 1e3,
        "cold_overhead_us": max(0.0, statistics.fmean(colder)) / 1e3,
        "wake_overhead_us": max(0.0, _waking_ns() - sending_ns) / 1e3,
    }


def _spans(model: Model, network: NetworkConfig, cache_dir: Path) -> list[Span]:
    """Of the master, of all tokens but the first."""
    system = TpiSystem(name="tpi", collective="direct")
    plan = system.plan(model.config, Site(proportions=[1.0] * _NUM_DEVICES))
    request = Request(prompt_ids=(1, 2, 3, 4), num_new_tokens=_NUM_TOKENS)
    reports = _run(system, model, plan, request, network, cache_dir)
    spans = [span for span in reports[0].spans if span.kind != "read"]
    spans.sort(key=lambda span: span.start_ns)
    steps = [number for number, span in enumerate(spans) if span.key == "embed"]
    return spans[steps[-_NUM_TOKENS + 1] :]


def _run(
    program: Program,
    model: Model,
    plan: Plan | None,
    request: Request,
    network: NetworkConfig,
    cache_dir: Path | None,
) -> list[DeviceReport]:
    job = Job(
        program=program,
        config=model.config,
        dtype=model.dtype,
        weights=model.weights,
        num_devices=_NUM_DEVICES,
        plan=plan,
        blocks=[] if plan is None or cache_dir is None else made_blocks(model, plan, cache_dir),
        request=request,
        network=network,
        threads_per_device=1,
        trace=True,
    )
    outcome = run_job(job)
    if outcome.status != "ok":
        raise ValueError(f"this host could not be calibrated: {outcome.error}")
    return sorted(outcome.devices, key=lambda device: device.rank)


def _lengths(spans: Sequence[Span], key: str) -> list[int]:
    return [span.end_ns - span.start_ns for span in spans if span.key == key]


def _gaps(spans: Sequence[Span]) -> list[int]:
    return [later.start_ns - earlier.end_ns for earlier, later in itertools.pairwise(spans)]


def _typical(values: Sequence[int]) -> float:
    """Mean without the slowest: a token is a sum of many, whose skew a median would lose."""
    ordered = sorted(values)
    return statistics.fmean(ordered[: max(1, round(_KEPT_SHARE * len(ordered)))])


def _copied_gb_per_s(large_ns: float, small_ns: float) -> float:
    """What a large message takes longer than a small one, copying takes; a tenth at least, where
    something else ran beside the small ones.
    """
    return _LARGE_BYTES / max(large_ns - small_ns, large_ns / 10)


def _of_those_there(receiving_ns: Sequence[int]) -> int:
    """What receiving takes where the message has come before."""
    return sorted(receiving_ns)[len(receiving_ns) // 4]


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


@dataclass(frozen=True)
class _Copies(Program):
    """Two ranks send each other large messages that they have just computed, at the same time."""

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation:
        import torch

        out, back = torch.empty(_LARGE_BYTES // 4), torch.empty(_LARGE_BYTES // 4)
        for _ in range(_NUM_LARGE):
            rt.compute(("fill",), lambda: out.fill_(1.0))
            rt.send(1 - rt.rank, out)
            rt.recv(1 - rt.rank, back)
        return Generation(token_ids=[], request_ns=0, token_ns=[], account=[])


def _copying_ns() -> tuple[float, float]:
    """Of a large message: sending it, and receiving it when it is there."""
    model = MODEL.load(Path())
    request = Request(prompt_ids=(0,), num_new_tokens=1)
    reports = _run(_Copies(), model, None, request, NetworkConfig(), None)
    spans = [span for report in reports for span in report.spans]
    return _typical(_lengths(spans, "send")), _of_those_there(_lengths(spans, "recv"))


def _stay_busy(rt: Runtime) -> None:
    end_ns = rt.now() + _PEER_WAITS_NS
    while rt.now() < end_ns:
        pass


def _waking_ns() -> float:
    model = MODEL.load(Path())
    request = Request(prompt_ids=(0,), num_new_tokens=1)
    reports = _run(_Wakes(), model, None, request, NetworkConfig(), None)
    return _typical(_lengths(reports[0].spans, "send")[1:])
