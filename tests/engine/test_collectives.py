"""Every collective: right sums, the same bits on every rank and in every run, closed forms."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.local_runtime import LocalRuntime, run_ranks
from tpi_bench.engine.collectives import COLLECTIVES, collective_by_name, tree_groups


def partials(world_size: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(world_size * 100 + count)
    return [torch.randn(3, count, generator=generator) * 10**rank for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize("count", [1, 7, 64])
def test_sum_and_bits(name: str, world_size: int, count: int) -> None:
    inputs = partials(world_size, count)

    def program(rt: LocalRuntime) -> torch.Tensor:
        return COLLECTIVES[name].run(rt, inputs[rt.rank].clone())

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
    results = run_ranks(3, lambda rt: COLLECTIVES[name].run(rt, values[rt.rank].clone()))
    assert [float(result) for result in results] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("world_size", range(1, 20))
def test_tree_groups_hold_every_worker_once(world_size: int) -> None:
    groups = tree_groups(world_size)
    assert [rank for group in groups for rank in group] == list(range(1, world_size))


def test_unknown_collective() -> None:
    with pytest.raises(ValueError, match="collective=mesh is unknown; choose one of star, tree"):
        collective_by_name("mesh")


@pytest.mark.parametrize(
    ("name", "size", "count"), [("star", 8, 1), ("ring", 2, 1), ("direct", 8, 7), ("direct", 1, 0)]
)
def test_direct_receives_from_everyone_before_it_adds(name: str, size: int, count: int) -> None:
    assert COLLECTIVES[name].num_receive_buffers(size) == count


def test_a_record_is_found_by_its_name() -> None:
    assert {"star", "tree", "ring", "direct"} <= COLLECTIVES.keys()
    assert all(record.name == name for name, record in COLLECTIVES.items())
    assert collective_by_name("ring") is COLLECTIVES["ring"]


@pytest.mark.parametrize(("name", "hops"), [("star", 8), ("tree", 16), ("ring", 56), ("direct", 4)])
def test_latency_on_the_papers_topology(name: str, hops: int) -> None:
    assert 4 * COLLECTIVES[name].num_steps(8) == hops


@pytest.mark.parametrize(
    ("name", "latencies", "transfers"),
    [("star", 2, 14), ("tree", 4, 4 + 5), ("ring", 14, 14 / 8), ("direct", 1, 7)],
)
def test_closed_forms_of_8_devices(name: str, latencies: int, transfers: float) -> None:
    """32 KB over 300 Mbit/s take 0.87381 ms; 7 workers are groups of 2, 2 and 3 under 3 heads."""
    transfer_s = 32768 * 8 / 300e6

    def time_s(one_way_s: float, bandwidth_bps: float) -> float:
        return COLLECTIVES[name].time_s(
            8, one_way_s=one_way_s, nbytes=32768, bandwidth_bps=bandwidth_bps
        )

    assert time_s(0.004, 0) == pytest.approx(latencies * 0.004)
    assert time_s(0.004, 300e6) == pytest.approx(latencies * 0.004 + transfers * transfer_s)


@pytest.mark.parametrize("name", COLLECTIVES)
def test_one_device_takes_no_time(name: str) -> None:
    assert COLLECTIVES[name].time_s(1, one_way_s=1, nbytes=1, bandwidth_bps=1) == 0


def test_a_tree_of_two_is_a_star() -> None:
    times = [
        COLLECTIVES[name].time_s(2, one_way_s=0.001, nbytes=1000, bandwidth_bps=1e6)
        for name in ("tree", "star")
    ]
    assert times == pytest.approx([0.018, 0.018])
