"""What a device keeps within its memory: never more than fits, hardly less, and spread evenly."""

from __future__ import annotations

import itertools
import pickle
import re
from dataclasses import replace

import pytest

from tests.helpers.planned import (
    LLAMA2_70B,
    SMALL,
    TINYLLAMA,
    all_bytes,
    held_bytes,
    plan_of,
    planned_job,
)
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.budget import cuts_of
from tpi_bench.engine.tpi import TpiSystem

MB = 1_000_000
SHARES = (0.3, 0.45, 0.6, 0.75, 0.9, 0.97)  # of the bytes of all blocks


def layer_bytes(job: Job, plan: Streaming) -> list[int]:
    """What is kept of each layer."""
    found = [0] * job.config.num_layers
    for block, kept in zip(job.blocks[0], plan.kept, strict=True):
        if block.layer >= 0 and kept is not None:
            found[block.layer] += kept.nbytes
    return found


every_way = pytest.mark.parametrize("keep", ["balanced", "blocks"])
every_size = pytest.mark.parametrize("share", SHARES)


@every_way
@every_size
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "q8", "q4"])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("config", [SMALL, TINYLLAMA], ids=["small", "tinyllama"])
def test_a_plan_keeps_what_fits_and_reads_the_rest(
    config: ModelConfig, is_tied: bool, weights: str, share: float, keep: str
) -> None:
    job = planned_job(config, weights=weights, is_tied=is_tied)
    blocks = job.blocks[0]
    total, room = all_bytes(blocks), share * all_bytes(blocks)
    plan = plan_of(job, room, keep=keep)
    assert held_bytes(job, plan) <= room
    table = blocks[0].nbytes
    unread = 0 if is_tied or plan.kept[0] is not None else table
    if is_tied and plan.kept[0] is not None:
        assert plan.kept[0] == replace(plan.kept[-1], kind="input")
    assert plan.kept_bytes + plan.streamed_bytes == total - unread
    for block, kept, streamed in zip(blocks, plan.kept, plan.streamed, strict=True):
        parts = [part for part in (kept, streamed) if part is not None]
        if parts:
            names = [name for part in parts for name in part.tensors]
            assert names == list(block.tensors)
            assert sum(part.nbytes for part in parts) == block.nbytes
            for name in block.tensors:  # numbers and their scales stay together
                if name.endswith(".scales"):
                    pair = {name, name.removesuffix(".scales")}
                    assert any(pair <= part.tensors.keys() for part in parts)


@every_size
@pytest.mark.parametrize("weights", ["float32", "q4"])
def test_balanced_layers_differ_by_one_matrix(share: float, weights: str) -> None:
    job = planned_job(TINYLLAMA, weights=weights)
    blocks = job.blocks[0]
    kept = layer_bytes(job, plan_of(job, share * all_bytes(blocks)))
    cuts = [[0, *cuts_of(block)] for block in blocks[1:3]]
    matrices = {b - a for found in cuts for a, b in itertools.pairwise(found)}
    assert max(kept) - min(kept) in {0, *matrices}
    more = [layer for layer, nbytes in enumerate(kept) if nbytes == max(kept)]
    gaps = {b - a for a, b in itertools.pairwise(more)}
    assert max(gaps) - min(gaps) <= 1  # evenly spread


@every_way
def test_nearly_all_of_the_memory_is_used(keep: str) -> None:
    """But for one matrix, or one block."""
    job = planned_job(TINYLLAMA)
    step = job.blocks[0][2].nbytes
    if keep == "balanced":
        step -= cuts_of(job.blocks[0][2])[0]  # the largest matrix
    for room in range(600 * MB, 4100 * MB, 77 * MB):
        plan = plan_of(job, room, keep=keep)
        assert plan.streamed_bytes > 0
        assert room - step < held_bytes(job, plan) <= room


@every_way
@pytest.mark.parametrize("config", [SMALL, TINYLLAMA], ids=["small", "tinyllama"])
def test_more_memory_does_not_read_more(config: ModelConfig, keep: str) -> None:
    job = planned_job(config)
    total, attention = all_bytes(job.blocks[0]), job.blocks[0][1]
    reads = [
        plan_of(job, total * percent / 100, keep=keep).streamed_bytes for percent in range(50, 120)
    ]
    # Whole blocks fill the memory now better, now worse.
    slack = attention.nbytes if keep == "blocks" else 0
    assert all(more <= less + slack for less, more in itertools.pairwise(reads))
    assert reads[-1] == 0


def test_whole_blocks_are_kept_evenly_spread() -> None:
    job = planned_job(TINYLLAMA)
    plan = plan_of(job, 1200 * MB, keep="blocks")
    kept = [part for part in plan.kept if part is not None]
    assert all(part in job.blocks[0] for part in kept)
    layers = [part.layer for part in kept if part.kind == "ffn"]
    assert len(layers) > 3
    assert {b - a for a, b in itertools.pairwise(layers)} <= {4, 5}


def test_all_is_kept_where_all_fits() -> None:
    job = planned_job()
    blocks = job.blocks[0]
    assert plan_of(job, all_bytes(blocks)) == Streaming.of_all(blocks)
    without = plan_of(job, all_bytes(blocks) - blocks[0].nbytes / 2)
    assert without.streamed_bytes == 0
    assert without.kept == (None, *blocks[1:])  # of the table rows are looked up


def test_a_plan_follows_from_the_job_alone() -> None:
    job = planned_job(LLAMA2_70B, num_devices=8, memory_bytes=(3100 * MB,) * 8)
    again = pickle.loads(pickle.dumps(job))
    for rank in (0, 1, 7):
        plan = TpiSystem(window="auto").streaming(job, rank)
        assert plan == again.program.streaming(again, rank)
        assert plan.streamed_bytes > 0


@every_way
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    ("config", "num_devices"), [(SMALL, 1), (TINYLLAMA, 1), (TINYLLAMA, 3), (LLAMA2_70B, 8)]
)
def test_too_little_memory_names_the_least_that_works(
    config: ModelConfig, num_devices: int, is_tied: bool, keep: str
) -> None:
    job = planned_job(config, num_devices=num_devices, is_tied=is_tied)
    system = TpiSystem(window="auto", keep=keep)

    def asked(megabytes: float) -> Job:
        return replace(job, memory_bytes=(round(megabytes * MB),) * num_devices)

    with pytest.raises(ValueError, match="is too little for the largest block") as error:
        system.streaming(asked(0.001), 0)
    assert "\n" not in str(error.value)
    (least,) = re.findall(r"at least device.memory_mb=([\d.]+),", str(error.value))
    assert system.streaming(asked(float(least)), 0).streamed_bytes > 0
    with pytest.raises(ValueError, match=r"device.memory_mb"):
        system.streaming(asked(0.97 * float(least)), 0)


def test_what_the_process_takes_is_in_the_least() -> None:
    """A cap of which 300 MB are not for the program."""
    system = TpiSystem(window="auto")
    job = planned_job(TINYLLAMA, memory_bytes=(400 * MB,), free_bytes=(100 * MB,))
    with pytest.raises(ValueError, match="memory_mb=400 is too little") as error:
        system.streaming(job, 0)
    (least,) = re.findall(r"at least device.memory_mb=([\d.]+),", str(error.value))
    enough = round(float(least) * MB)
    fitting = replace(job, memory_bytes=(enough,), free_bytes=(enough - 300 * MB,))
    assert system.streaming(fitting, 0).streamed_bytes > 0


def test_without_a_known_memory_it_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"auto needs to know .* set device.memory_mb, or"):
        TpiSystem(window="auto").streaming(planned_job(), 0)


def test_workers_have_no_ends_and_idle_devices_nothing() -> None:
    job = planned_job(num_devices=2)
    half = all_bytes(job.blocks[1]) / 2
    assert {part.kind for part in plan_of(job, half, 1).streamed_parts} <= {"attn", "ffn"}
    assert job.plan is not None
    plan = replace(job.plan, shards=(job.plan.shards[0], ()))
    idle = replace(job, blocks=[job.blocks[0], []], plan=plan)
    assert plan_of(idle, half, 1) == Streaming.of_all([])
