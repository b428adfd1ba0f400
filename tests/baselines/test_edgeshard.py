"""EdgeShard's planner against every way there is, and what the pipeline makes of its plans."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from baselines.edgeshard import MOST_DEVICES, plan_stages
from baselines.pipeline import PipelineSystem
from tests.helpers.sites import SHAPE, device, site_of


def cost_of(stages, layer_s, transfer_s) -> float:
    total = sum(sum(layer_s[rank][first:last]) for rank, first, last in stages)
    ranks = [rank for rank, _, _ in stages]
    total += sum(transfer_s[a][b] for a, b in itertools.pairwise(ranks))
    return total + (transfer_s[ranks[-1]][0] if len(ranks) > 1 else 0.0)


def every_way(num_devices: int, num_layers: int):
    """All chains that begin at the master, with all boundaries."""
    for count in range(num_devices):
        for rest in itertools.permutations(range(1, num_devices), count):
            for cuts in itertools.combinations(range(1, num_layers), count):
                ends = [0, *cuts, num_layers]
                yield [
                    (rank, *span)
                    for rank, span in zip((0, *rest), itertools.pairwise(ends), strict=True)
                ]


@pytest.mark.parametrize("seed", range(12))
def test_no_way_is_better(seed: int) -> None:
    draw = random.Random(seed)
    num_devices, num_layers = draw.choice([(2, 6), (3, 6), (4, 5)])
    layer_s = [[draw.uniform(1, 9) for _ in range(num_layers)] for _ in range(num_devices)]
    transfer_s = [[draw.uniform(0, 3) for _ in range(num_devices)] for _ in range(num_devices)]
    sizes = [draw.randint(1, 4) for _ in range(num_layers)]
    rooms = [float(draw.randint(4, 12)) for _ in range(num_devices)]

    def fits(stages) -> bool:
        return all(sum(sizes[first:last]) <= rooms[rank] for rank, first, last in stages)

    ways = [stages for stages in every_way(num_devices, num_layers) if fits(stages)]
    if not ways:
        with pytest.raises(ValueError, match="do not fit"):
            plan_stages(layer_s, sizes, rooms, transfer_s)
        return
    stages, seconds = plan_stages(layer_s, sizes, rooms, transfer_s)
    assert stages in ways
    assert seconds == pytest.approx(cost_of(stages, layer_s, transfer_s))
    assert seconds == pytest.approx(min(cost_of(s, layer_s, transfer_s) for s in ways))


def test_too_many_devices_are_refused() -> None:
    n = MOST_DEVICES + 1
    with pytest.raises(ValueError, match=rf"num_devices={n}.*at most {MOST_DEVICES}"):
        plan_stages([[1.0]] * n, [1], [9.0] * n, [[0.0] * n] * n)


def chain_of(devices, **network) -> tuple[int, ...]:
    site = site_of(devices, **network)
    return PipelineSystem(planner="edgeshard").plan(SHAPE, site).chain


def test_a_slow_device_is_left_out() -> None:
    """A layer has 164 kB, so all 8 fit in the 2 MB of one device."""
    assert chain_of([device("a", 1.0, 2), device("b", 0.1, 2)]) == (0,)


def test_a_fast_device_is_used_when_it_is_near() -> None:
    devices = [device("a", 1.0, 2), device("b", 10.0, 2), device("c", 0.1, 2)]
    assert chain_of(devices) == (0, 1)
    assert chain_of(devices, topology="switch", link_latency_ms=5) == (0,)


def test_memory_makes_it_use_more_devices() -> None:
    devices = [device("a", 1.0, 0.6), device("b", 0.1, 2), device("c", 0.5, 0.6)]
    assert set(chain_of(devices)) == {0, 1, 2}


def test_the_unused_own_nothing() -> None:
    site = replace(site_of([device("a", 1.0, 2), device("b", 0.1, 2)]), memory_bytes=None)
    plan = PipelineSystem(planner="edgeshard").plan(SHAPE, site)
    assert plan.shards[1] == ()
    assert len(plan.shards[0]) == 18
    assert PipelineSystem().plan(SHAPE, site).chain == (0, 1)


def test_an_unknown_planner_is_refused() -> None:
    with pytest.raises(ValueError, match=r"planner=best.*proportional, edgeshard"):
        PipelineSystem(planner="best")


def test_a_planner_without_links_is_a_defect() -> None:
    site = replace(site_of([device("a", 1.0, 2)]), transfers_s=None)
    with pytest.raises(AssertionError):
        PipelineSystem(planner="edgeshard").plan(SHAPE, site)
    assert PipelineSystem().plan(SHAPE, site).chain == (0,)
