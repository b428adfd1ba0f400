"""The products alone: all weights of a token, each once, and nothing of the embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines.products import ProductsSystem, shapes_of, token_matrices
from tests.helpers.local_runtime import run_ranks
from tests.helpers.models_zoo import prompt_of
from tests.helpers.running import make_job, run_ok
from tpi_bench.contract.job import Job
from tpi_bench.contract.request import Request
from tpi_bench.contract.runtime import Runtime
from tpi_bench.engine import tiles

REQUEST = Request(prompt_ids=prompt_of(5), num_new_tokens=4)


def job_of(folder: Path, cache_dir: Path, num_devices: int, weights: str = "float32") -> Job:
    return make_job(
        ProductsSystem(),
        folder,
        cache_dir,
        num_devices=num_devices,
        request=REQUEST,
        weights=weights,
    )


@pytest.mark.parametrize(("variant", "head"), [("gqa", "lm_head"), ("tied", "embed_tokens")])
def test_they_are_the_matrices_of_a_token(
    variant: str, head: str, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """Over three devices together: every projection, and the head or the embedding that is one."""
    job = job_of(checkpoints[variant], cache_dir, 3)
    found = run_ranks(3, lambda rt: token_matrices(rt, ProductsSystem(), job))
    shapes = job.config.tensor_shapes()
    wanted = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "mlp.")
    whole = [
        rows * cols
        for name, (rows, *rest) in shapes.items()
        for cols in rest
        if any(part in name for part in (*wanted, head))
    ]
    assert sum(m.shape[0] * m.shape[1] for matrices in found for m in matrices) == sum(whole)
    assert len(found[0]) == 4 * job.config.num_layers + 1
    assert [len(other) for other in found[1:]] == [4 * job.config.num_layers] * 2


@pytest.mark.parametrize("weights", ["float32", "q4"])
def test_they_run_at_every_precision(weights: str, wide: Path, cache_dir: Path) -> None:
    outcome = run_ok(job_of(wide, cache_dir, 2, weights))
    assert outcome.generation is not None
    times = [outcome.generation.request_ns, *outcome.generation.token_ns]
    assert len(times) == 5
    assert times == sorted(times)
    assert outcome.generation.warmup_ttft_ns is not None
    assert len(outcome.devices) == 2


def test_a_span_a_matrix_and_rows_of_a_prompt(wide: Path, cache_dir: Path) -> None:
    """Each matrix is a computation that its shape names, also with several vectors at once."""
    job = job_of(wide, cache_dir, 1)
    shapes = run_ranks(1, lambda rt: shapes_of(token_matrices(rt, ProductsSystem(), job)))[0]
    program = ProductsSystem(rows=3, by_matrix=True)
    outcome = run_ok(replace(job, program=program, trace=True))
    names = [span.key for span in outcome.devices[0].spans if span.kind == "compute"]
    passes, rest = divmod(len(names), len(shapes))
    assert rest == 0
    assert names == [f"{rows}x{cols}" for rows, cols in shapes] * passes


@pytest.mark.parametrize("weights", ["float32", "q8", "q4"])
def test_a_product_is_taken_apart(weights: str, wide: Path, cache_dir: Path) -> None:
    """In tiles it is the product; the tiles together are the weight."""
    job = job_of(wide, cache_dir, 1, weights)

    def check(rt: Runtime) -> int:
        matrices = token_matrices(rt, ProductsSystem(), job)
        for matrix in matrices:
            x = torch.randn(9, matrix.shape[1])
            sizes = (matrix.values, matrix.scales, matrix.shape)
            torch.testing.assert_close(tiles.in_tiles(x, *sizes), matrix(x))
            whole = tiles.widened(matrix.values, matrix.scales, torch.float32)
            parts = [tile.clone() for _, tile in tiles.tiles_of(*sizes, torch.float32)]
            assert torch.equal(torch.cat(parts), whole)
        return len(matrices)

    assert run_ranks(1, check)[0] > 1
    for part in ("in_tiles", "widening"):
        program = ProductsSystem(rows=9, part=part)
        assert program.variant == part.replace("_", " ")
        outcome = run_ok(replace(job, program=program))
        assert outcome.generation is not None
        assert len(outcome.generation.token_ns) == REQUEST.num_new_tokens


def test_a_part_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"system.part=half is unknown; choose one of product,"):
        ProductsSystem(part="half")


def test_rows_are_at_least_one() -> None:
    with pytest.raises(ValueError, match=r"system.rows is 0; it is 1 for a token"):
        ProductsSystem(rows=0)
