"""Whole models with packed payloads: near the exact logits, and the same bits on all ranks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.galaxy import GalaxySystem
from baselines.pipeline import PipelineSystem
from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.running import make_job, run_ok
from tests.helpers.virtual import IDEAL, run_here, virtual_job, world_of
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.request import Request
from tpi_bench.contract.system import System
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.device_model import DeviceModel
from tpi_bench.engine.tpi import TpiSystem

NUM_NEW = 6
PROMPT = prompt_of(20)
# Root mean square of the logits' errors over their spread. It is so much because partial sums of
# these random models nearly cancel each other.
MOST_OFF = {"auto": 1e-4, "float16": 0.02, "q8": 0.3}
BYTES = {"auto": 4, "float16": 2, "q8": 1.0625}


def systems(wire: str) -> list[System]:
    tensor = [TpiSystem(collective=name, wire=wire) for name in COLLECTIVES]
    return [*tensor, PipelineSystem(wire=wire), GalaxySystem(wire=wire)]


def system_id(value: object) -> str | None:
    return f"{value.label} {value.variant}" if isinstance(value, System) else None


def job_of(system: System, folder: Path, cache_dir: Path, **extra: Any) -> Job:
    request = Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW, keep_logits=True)
    return make_job(system, folder, cache_dir, num_devices=3, request=request, **extra)


def run_together(job: Job) -> tuple[list[int], list[torch.Tensor]]:
    """In this process, on three devices that take no time: tokens and logits."""
    logits: list[torch.Tensor] = []
    output = Output(on_logits=lambda row: logits.append(row.clone()))
    world = world_of(IDEAL, IDEAL, IDEAL)
    master, *_ = world.run(lambda rt: job.program.run_device(rt, job, output))
    assert master is not None
    return master.token_ids, logits


def check_logits(wire: str, found: tuple[list[int], Any], expected: tuple[list[int], Any]) -> None:
    """Near the exact ones for as long as the tokens are the same."""
    is_same = [a == b for a, b in zip(found[0], expected[0], strict=True)]
    num_same = [*is_same, False].index(False)
    for row in range(min(NUM_NEW, num_same + 1)):
        exact = expected[1][row]
        assert found[1][row].isfinite().all()
        off = (found[1][row] - exact).square().mean().sqrt() / exact.std()
        assert off < MOST_OFF[wire]
        assert wire == "auto" or off > 1e-5


@pytest.mark.parametrize(
    ("system", "is_wide"),
    [
        *((system, i % 2 == 0) for i, system in enumerate(systems("float16"))),
        *((system, i % 2 == 1) for i, system in enumerate(systems("q8"))),
    ],
    ids=system_id,
)
def test_logits_are_near_the_exact_ones(
    checkpoints: dict[str, Path], wide: Path, cache_dir: Path, system: Any, is_wide: bool
) -> None:
    """Of hidden size 128, and 72, which is no multiple of 32."""
    folder = wide if is_wide else checkpoints["gqa"]
    found = run_together(job_of(system, folder, cache_dir))
    check_logits(system.wire, found, oracle(folder, PROMPT, NUM_NEW))


@pytest.mark.parametrize("system", systems("q8")[: len(COLLECTIVES)], ids=system_id)
def test_all_ranks_have_the_same_hidden_states(
    checkpoints: dict[str, Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch, system: Any
) -> None:
    """To the bit, what goes into the layers and into the last block, in prefill and each later
    token; what the last block adds may come to the master alone.
    """
    states: dict[DeviceModel, list[torch.Tensor]] = {}
    through = DeviceModel.through

    def kept(self: DeviceModel, blocks: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        states.setdefault(self, []).append(x.clone())
        return through(self, blocks, x, *rest)

    monkeypatch.setattr(DeviceModel, "through", kept)
    run_together(job_of(system, checkpoints["gqa"], cache_dir))
    master, *workers = states.values()
    assert len(workers) == 2
    assert {tuple(state.shape) for state in master} == {(20, 72), (1, 72)}
    for worker in workers:
        assert all(torch.equal(a, b) for a, b in zip(master, worker, strict=True))


@pytest.mark.parametrize("wire", ["auto", "float16", "q8"])
def test_on_real_devices(wide: Path, cache_dir: Path, tmp_path: Path, wire: str) -> None:
    """Tokens and logits as in one process, and fewer bytes between the devices, of all that is
    sent but headers and round trips."""
    path = tmp_path / "logits.pt"
    job = job_of(TpiSystem(wire=wire), wide, cache_dir, logits_path=str(path))
    outcome = run_ok(job)
    assert outcome.generation is not None
    found = outcome.generation.token_ids, torch.load(path)
    check_logits(wire, found, oracle(wide, PROMPT, NUM_NEW))
    assert found[0] == run_together(job)[0]
    # The embedding and all sums but the last come to a worker, and all sums come from it.
    values = 128 * _positions(job) * 2 * job.config.num_layers
    master, *workers = sorted(outcome.devices, key=lambda device: device.rank)
    assert master.bytes_sent == pytest.approx(2 * values * BYTES[wire], rel=0.02)
    for worker in workers:
        assert worker.bytes_sent == pytest.approx(values * BYTES[wire], rel=0.02)
        assert worker.bytes_received == pytest.approx(values * BYTES[wire], rel=0.02)
    assert master.bytes_received == sum(worker.bytes_sent for worker in workers)


def _positions(job: Job) -> int:
    """Of the warm-up and the answer; the last token of each is not looked at again."""
    request = job.request
    return 2 * (len(request.prompt_ids) - 1) + request.warmup_tokens + request.num_new_tokens


@pytest.mark.parametrize("system", systems("q8"), ids=system_id)
def test_modelled_runs_hold_and_send_the_same_bytes(
    checkpoints: dict[str, Path], cache_dir: Path, system: Any
) -> None:
    """Packing works without data, its time is in the account, and as much is held and sent."""
    slow = DeviceProfile(
        name="slow",
        cores=4,
        memory_gb=1,
        memory_gb_per_s=10,
        peak_gflops=50,
        op_overhead_us=3,
        disk_gb_per_s=0.5,
        disk_latency_us=80,
        disk_queue_depth=4,
        message_overhead_us=15,
        step_overhead_us=0,
    )
    job = virtual_job(system, checkpoints["gqa"], cache_dir, 3, slow)
    found = [run_here(job, cache_dir, cost=cost) for cost in ("modelled", "measured")]
    for outcome in found:
        assert outcome.status == "ok", outcome.error
    held = [
        [(d.ledger_bytes, d.bytes_sent, d.bytes_received) for d in outcome.devices]
        for outcome in found
    ]
    assert held[0] == held[1]
    generation = found[0].generation
    assert generation is not None
    times = [generation.request_ns, *generation.token_ns]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert [sum(kinds.values()) for kinds in generation.account] == gaps
