"""Weights that are kept and streamed within a memory budget, in real runs and in virtual time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.pipeline import PipelineSystem
from tests.helpers.local_runtime import LocalRuntime
from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.planned import all_bytes, held_bytes, with_room
from tests.helpers.running import make_job, run_ok
from tests.helpers.virtual import IDEAL, run_here
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.request import Request
from tpi_bench.engine.look_up import RowsOnDisk, look_up_bytes
from tpi_bench.engine.streaming import WindowedSystem
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.engine.weights import weights_in
from tpi_bench.host.disk import read_file

PROMPT = prompt_of(20)
NUM_NEW = 16


class FileRuntime(LocalRuntime):
    """Reads are real, and counted."""

    num_bytes = 0

    def read(self, block: Any, out: torch.Tensor) -> Any:
        read_file(block.extent, out.numpy())
        self.num_bytes += block.nbytes
        return super().read(block, out)


def run_within(
    system: WindowedSystem,
    folder: Path,
    cache_dir: Path,
    share: float,
    *,
    num_devices: int = 1,
    prompt: tuple[int, ...] = PROMPT,
    **extra: Any,
) -> tuple[Job, Outcome]:
    """With room for a share of each device's weights."""
    request = Request(prompt_ids=prompt, num_new_tokens=NUM_NEW, warmup_tokens=2)
    job = make_job(system, folder, cache_dir, num_devices=num_devices, request=request, **extra)
    most = max(all_bytes(blocks) for blocks in job.blocks)
    job = with_room(job, share * most)
    return job, run_ok(job)


@pytest.mark.parametrize(
    ("name", "num_devices", "num_prompt"),
    [("gqa", 1, 200), ("tied", 1, 20), ("biases", 2, 20), ("qwen2", 3, 1), ("bf16", 1, 20)],
)
@pytest.mark.parametrize(
    ("keep", "share"), [("balanced", 0.5), ("balanced", 0.8), ("blocks", 0.65)]
)
def test_tokens_are_those_of_transformers(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    name: str,
    num_devices: int,
    num_prompt: int,
    keep: str,
    share: float,
) -> None:
    system = TpiSystem(window="auto", keep=keep)
    prompt = prompt_of(num_prompt)
    job, outcome = run_within(
        system, checkpoints[name], cache_dir, share, num_devices=num_devices, prompt=prompt
    )
    assert outcome.generation is not None
    assert outcome.generation.token_ids == oracle(checkpoints[name], prompt, NUM_NEW)[0]
    plans = [system.streaming(job, rank) for rank in range(num_devices)]
    assert any(plan.streamed_bytes for plan in plans)
    for device in outcome.devices:
        plan = plans[device.rank]
        assert device.ledger_bytes.get("window", 0) + device.ledger_bytes.get(
            "weights", 0
        ) == held_bytes(job, plan, device.rank)
        # What is kept is read once; the rest at most once a token, and once too often at the end.
        most = plan.kept_bytes + 19 * plan.streamed_bytes + plan.area_bytes
        rows = (len(prompt) + 19) * 3 * 4096
        assert device.weight_bytes_read <= most + rows


def test_a_pipeline_streams_its_own_layers(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    system = PipelineSystem(window="auto")
    _, outcome = run_within(system, checkpoints["gqa"], cache_dir, 0.6, num_devices=2)
    assert outcome.generation is not None
    assert outcome.generation.token_ids == oracle(checkpoints["gqa"], PROMPT, NUM_NEW)[0]


@pytest.mark.parametrize("weights", ["q8", "q4"])
@pytest.mark.parametrize("share", [0.75, 0.9])
def test_quantised_weights_are_the_same_streamed(
    wide: Path, cache_dir: Path, weights: str, share: float
) -> None:
    given = {"weights": weights, "prompt": PROMPT[:5]}
    _, held = run_within(TpiSystem(), wide, cache_dir, 2.0, **given)
    job, streamed = run_within(TpiSystem(window="auto"), wide, cache_dir, share, **given)
    assert held.generation is not None
    assert streamed.generation is not None
    assert streamed.generation.token_ids == held.generation.token_ids
    assert TpiSystem(window="auto").streaming(job, 0).streamed_bytes > 0


# Look-ups


@pytest.mark.parametrize("weights", ["float32", "q8"])
def test_rows_from_the_disk_are_the_rows_of_the_table(
    wide: Path, cache_dir: Path, weights: str
) -> None:
    """Also those that are asked for twice, lie across a page's border, and end the table."""
    job = make_job(
        TpiSystem(),
        wide,
        cache_dir,
        num_devices=1,
        request=Request(prompt_ids=PROMPT, num_new_tokens=1),
        weights=weights,
    )
    table = job.blocks[0][0]
    rt = FileRuntime(0, {(0, 0): None})
    whole = torch.zeros(table.nbytes, dtype=torch.uint8)
    rt.read(table, whole)
    rows = [299, 7, 8, 7, 0, 15, 16, 31, 299, *range(100, 150)]
    on_disk = RowsOnDisk(rt, table, len(rows))
    for asked in (rows, rows[:1], rows[::-1]):
        rt.num_bytes = 0
        weights_read, places = on_disk.weights(asked)
        found = weights_read.matrices["embedding"].rows(torch.tensor(places), torch.float32)
        expected = weights_in(table, whole).matrices["embedding"]
        assert torch.equal(found, expected.rows(torch.tensor(asked), torch.float32))
        assert rt.num_bytes < len(set(asked)) * look_up_bytes(table, 1)


def test_a_table_larger_than_memory_is_looked_up(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """A prompt with repeated tokens, of which each row is read once."""
    prompt = prompt_of(12) * 4 + (299, 0, 299)
    system = TpiSystem(window="auto")
    job, outcome = run_within(system, checkpoints["gqa"], cache_dir, 0.7, prompt=prompt)
    assert system.streaming(job, 0).kept[0] is None
    assert outcome.generation is not None
    assert outcome.generation.token_ids == oracle(checkpoints["gqa"], prompt, NUM_NEW)[0]


# Virtual time


@pytest.mark.parametrize("keep", ["balanced", "blocks"])
def test_virtual_time_follows_the_same_plan(
    checkpoints: dict[str, Path], cache_dir: Path, keep: str
) -> None:
    system = TpiSystem(window="auto", keep=keep)
    job, real = run_within(system, checkpoints["gqa"], cache_dir, 0.7)
    assert job.free_bytes is not None
    memory_gb = job.free_bytes[0] / 1e9
    profiles = (replace(IDEAL, memory_gb=memory_gb, disk_gb_per_s=1.0),)
    virtual_job = replace(job, profiles=profiles, free_bytes=None)
    assert system.streaming(virtual_job, 0) == system.streaming(job, 0)
    virtual = run_here(virtual_job, cache_dir, cost="measured")
    assert virtual.status == "ok", virtual.error
    assert virtual.generation is not None
    assert real.generation is not None
    assert virtual.generation.token_ids == real.generation.token_ids
    (here,), (there,) = real.devices, virtual.devices
    assert here.ledger_bytes == there.ledger_bytes
    assert here.weight_bytes_read == there.weight_bytes_read
    assert sum(there.ledger_bytes.values()) <= profiles[0].memory_bytes
