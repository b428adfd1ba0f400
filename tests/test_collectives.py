"""Every collective: right sums, the same bits on every rank and in every run, whoever is late."""

from __future__ import annotations

import pytest
import torch

from tests.local_runtime import LocalRuntime, run_ranks
from tpi_bench.collectives import (
    COLLECTIVES,
    allreduce_by_name,
    num_receive_buffers,
    tree_groups,
)


def partials(world_size: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(world_size * 100 + count)
    return [torch.randn(3, count, generator=generator) * 10**rank for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize("count", [1, 7, 64])
def test_sum_and_bits(name: str, world_size: int, count: int) -> None:
    inputs = partials(world_size, count)

    def program(rt: LocalRuntime) -> torch.Tensor:
        return COLLECTIVES[name](rt, inputs[rt.rank].clone())

    first = run_ranks(world_size, program)
    expected = sum(part.double() for part in inputs)
    for result in first:
        assert torch.equal(result, first[0])
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5 * 10**world_size)
    late = run_ranks(world_size, program, delay=lambda src, dst: 0.003 * ((src + 1) % world_size))
    assert all(torch.equal(a, b) for a, b in zip(first, late, strict=True))


@pytest.mark.parametrize("name", ["star", "direct"])
def test_rank_order(name: str) -> None:
    """(p0 + p1) + p2 and no other order: these values tell the difference."""
    values = [torch.tensor([1e8]), torch.tensor([-1e8]), torch.tensor([1.0])]
    results = run_ranks(3, lambda rt: COLLECTIVES[name](rt, values[rt.rank].clone()))
    assert [float(result) for result in results] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("world_size", range(1, 20))
def test_tree_groups_hold_every_worker_once(world_size: int) -> None:
    groups = tree_groups(world_size)
    assert [rank for group in groups for rank in group] == list(range(1, world_size))


def test_unknown_collective() -> None:
    with pytest.raises(ValueError, match="collective=mesh is unknown; choose one of star, tree"):
        allreduce_by_name("mesh")


@pytest.mark.parametrize(
    ("name", "size", "count"), [("star", 8, 1), ("ring", 2, 1), ("direct", 8, 7), ("direct", 1, 0)]
)
def test_direct_receives_from_everyone_before_it_adds(name: str, size: int, count: int) -> None:
    assert num_receive_buffers(name, size) == count
