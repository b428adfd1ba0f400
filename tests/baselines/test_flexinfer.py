"""FlexInfer: the same matrices of every layer, and two layers ahead of the one that is computed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from baselines.flexinfer import FlexInferSystem
from tests.helpers.models_zoo import Variant, make_checkpoint, oracle, prompt_of
from tests.helpers.planned import TINYLLAMA, planned_job, with_room
from tests.helpers.running import make_job, run_ok
from tests.helpers.sites import SHAPE
from tests.helpers.virtual import IDEAL, Scripted, world_of
from tpi_bench import run
from tpi_bench.contract.job import Job
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.rank import run_rank
from tpi_bench.engine.tpi import TpiSystem

TYPED = (
    "model=debug",
    "model.num_layers=12",
    "testbed=virtual",
    "workload.prompt_tokens=4",
    "workload.num_new_tokens=3",
)


def plan_of(job: Job, share: float) -> tuple[Job, Streaming]:
    """With room for a share of the weights."""
    job = with_room(job, share * sum(block.nbytes for block in job.blocks[0]))
    system = job.program
    assert isinstance(system, FlexInferSystem)
    return job, system.streaming(job, 0)


def kept_of_layers(plan: Streaming) -> list[int]:
    """Bytes kept of each layer."""
    found: dict[int, int] = {}
    for kept, streamed in zip(plan.kept, plan.streamed, strict=True):
        part = kept or streamed
        if part is not None and part.layer >= 0:
            found[part.layer] = found.get(part.layer, 0) + (kept.nbytes if kept else 0)
    return list(found.values())


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_every_layer_keeps_the_same(share: float) -> None:
    system = FlexInferSystem()
    _, plan = plan_of(planned_job(TINYLLAMA, system=system), share)
    kept = kept_of_layers(plan)
    assert len(kept) == 22
    assert len(set(kept)) == 1
    assert plan.streamed_bytes > 0


def test_three_layers_have_room_at_once() -> None:
    _, plan = plan_of(planned_job(TINYLLAMA, system=FlexInferSystem()), 0.5)
    layers = [part for part in plan.streamed_parts if part.layer >= 0]
    largest = max(
        sum(part.nbytes for part in own)
        for _, own in itertools.groupby(layers, key=lambda part: part.layer)
    )
    assert 3 * largest <= plan.area_bytes <= 4 * largest  # 22 layers are no whole rounds of 3


def test_the_budget_is_that_of_tpi_auto() -> None:
    """It keeps less than that by what it reads ahead, and by what is no whole matrix a layer."""
    job, plan = plan_of(planned_job(TINYLLAMA, system=FlexInferSystem()), 0.5)
    other = TpiSystem(window="auto").streaming(replace(job, program=TpiSystem(window="auto")), 0)
    room = 0.5 * sum(block.nbytes for block in job.blocks[0])
    for found in (plan, other):
        assert 0.6 * room < found.kept_bytes + found.area_bytes <= room
    assert plan.kept_bytes <= other.kept_bytes


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of twelve layers, of which a ring of three is a part."""
    changes = {"untied": {"num_hidden_layers": 12}}
    changes["tied"] = changes["untied"] | {"tie_word_embeddings": True}
    return {
        name: make_checkpoint(tmp_path_factory.mktemp(name), Variant(changes=own))
        for name, own in changes.items()
    }


@pytest.mark.parametrize(("share", "length"), [(0.6, 20), (0.75, 200), (2.0, 1)])
@pytest.mark.parametrize("name", ["untied", "tied"])
def test_tokens_are_those_of_transformers(
    deep: dict[str, Path], cache_dir: Path, name: str, share: float, length: int
) -> None:
    request = Request(prompt_ids=prompt_of(length), num_new_tokens=12, warmup_tokens=2)
    job = make_job(FlexInferSystem(), deep[name], cache_dir, num_devices=1, request=request)
    job, plan = plan_of(job, share)
    assert (plan.streamed_bytes > 0) == (share < 1)
    outcome = run_ok(job)
    assert outcome.generation is not None
    assert outcome.generation.token_ids == oracle(deep[name], request.prompt_ids, 12)[0]
    assert outcome.devices[0].weight_bytes_read > 0


def test_reads_are_spread_over_a_token(deep: dict[str, Path], cache_dir: Path) -> None:
    """Where a layer's reads take less than it computes nobody waits, and where they take more, a
    token takes them alone. Twelve layers of 100 us.
    """
    request = Request(prompt_ids=(1, 2, 3), num_new_tokens=5)
    job = make_job(FlexInferSystem(), deep["untied"], cache_dir, num_devices=1, request=request)
    job, plan = plan_of(job, 0.6)
    costs = Scripted(attn=40_000, ffn=60_000)
    for disk_ns, token_ns in ((800_000, 1_200_000), (3_000_000, 3_000_000)):
        profile = replace(IDEAL, disk_gb_per_s=plan.streamed_bytes / disk_ns)
        generation = world_of(profile, costs=costs).run(lambda rt: run_rank(rt, job))[0].generation
        assert generation is not None
        gaps = [b - a for a, b in itertools.pairwise(generation.token_ns)]
        assert gaps[-1] == pytest.approx(token_ns, rel=0.1)


def test_it_knows_one_device() -> None:
    with pytest.raises(ValueError, match=r"num_devices=2 with system=flexinfer, which knows one"):
        FlexInferSystem().plan(SHAPE, Site(proportions=[1.0, 1.0]))
    with pytest.raises(ValueError, match=r"system.ahead=-1 must be a number of layers"):
        FlexInferSystem(ahead=-1)


def test_as_it_is_typed() -> None:
    typed = ("system=flexinfer", "testbed.num_devices=1", *TYPED)
    result = run(*typed)
    assert (result.status, result.row.label, result.row.variant) == ("ok", "FlexInfer", "")
    short = run(*typed, "system.ahead=1", "device.memory_mb=3")
    assert (short.status, short.row.variant) == ("ok", "ahead 1"), short.row.error
    assert short.row.streamed_bytes > 0
    assert short.row.token_latency_s > result.row.token_latency_s
