"""Planners of layers: each by its own rule, from the same description of devices."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from baselines.layer_planners import PLANNERS, Layers, by_memory, halda, halda_ring, waterfill
from baselines.pipeline import PipelineSystem
from tests.helpers.sites import SHAPE, device, site_of
from tpi_bench.contract.plan import DoesNotFit, Site

LAYER_MB = SHAPE.layer_parameters * 4 / 1e6  # 0.164
CACHE_MB = SHAPE.cache_values(1) * 4 / 1e6


def layers_of(devices, *, streams: bool = False, num_layers: int = 8, **network: Any) -> Layers:
    return Layers(
        config=replace(SHAPE, num_layers=num_layers),
        site=site_of(devices, **network),
        wire="auto",
        streams=streams,
        num_layers=num_layers,
    )


def room_of(count: float, *, master: bool = False) -> float:
    """MB of memory for so many layers, and on the master for both ends."""
    ends = SHAPE.end_parameters * 4 / 1e6 if master else 0.0
    return count * (LAYER_MB + CACHE_MB) + ends


def test_in_proportion_to_memory() -> None:
    devices = [device("a", 1.0, 3), device("b", 9.0, 1), device("c", 1.0, 4)]
    assert by_memory(layers_of(devices)) == [(0, 3), (1, 1), (2, 4)]
    site = Site(proportions=[1.0, 1.0])
    shared = Layers(config=SHAPE, site=site, wire="auto", streams=False, num_layers=8)
    assert by_memory(shared) == [(0, 4), (1, 4)]


def test_water_is_level_where_there_is_room() -> None:
    """Speeds of 1, 2 and 5: eight layers in these parts."""
    devices = [device(name, speed, 100) for name, speed in (("a", 1.0), ("b", 2.0), ("c", 5.0))]
    assert waterfill(layers_of(devices)) == [(0, 1), (1, 2), (2, 5)]


def test_water_stops_at_what_a_device_holds() -> None:
    """The fastest holds 2.4 layers; the others share six at 1 to 2."""
    devices = [device("a", 1.0, 100), device("b", 2.0, 100), device("c", 50.0, room_of(2.4))]
    assert waterfill(layers_of(devices)) == [(0, 2), (1, 4), (2, 2)]


def test_the_level_against_every_division() -> None:
    """Of all divisions that fit, none has a slowest device that is done a layer earlier."""
    devices = [
        device("a", 3.0, room_of(5.2, master=True)),
        device("b", 2.0, room_of(3.7)),
        device("c", 7.0, room_of(2.2)),
    ]
    layers = layers_of(devices)
    counts = dict(waterfill(layers))
    seconds, rooms = layers.layer_s(), layers.rooms()
    assert all(count <= rooms[rank] for rank, count in counts.items())

    def slowest_s(counts) -> float:
        return max(count * s for count, s in zip(counts, seconds, strict=True))

    fitting = [
        way
        for way in itertools.product(range(1, 9), range(9), range(9))
        if sum(way) == 8 and all(n <= room for n, room in zip(way, rooms, strict=True))
    ]
    own = slowest_s([counts.get(rank, 0) for rank in range(3)])
    one_layer = max(seconds)
    assert own <= min(map(slowest_s, fitting)) + one_layer


def test_water_leaves_out_who_is_too_slow_but_not_the_master() -> None:
    devices = [device("a", 0.01, 100), device("b", 9.0, 100), device("c", 0.01, 100)]
    assert waterfill(layers_of(devices)) == [(0, 1), (1, 7)]


def test_too_much_water() -> None:
    devices = [device("a", 1.0, room_of(3, master=True)), device("b", 1.0, room_of(3))]
    with pytest.raises(DoesNotFit, match=r"0\.00 GB of layers do not fit"):
        waterfill(layers_of(devices))
    streamed = dict(waterfill(layers_of(devices, streams=True)))
    assert sum(streamed.values()) == 8
    assert set(streamed) == {0, 1}


def test_halda_for_one_round() -> None:
    """Three of four layers fit on the fast one, whose disk is slow: the master takes the rest."""
    slow = replace(device("a", 0.5, room_of(8, master=True)), disk_gb_per_s=0.5)
    fast = replace(device("b", 9.0, room_of(3)), disk_gb_per_s=0.5)
    assert halda(layers_of([slow, fast], num_layers=4)) == [(0, 1), (1, 3)]
    assert PipelineSystem(planner="halda").plan(
        replace(SHAPE, num_layers=4), site_of([slow, fast])
    ).chain == (0, 1)


def test_the_program_of_prima_does_not_see_hops() -> None:
    """Its objective is that of the paper without memory and links, so a far device is used."""
    slow = replace(device("a", 1.0, 100), peak_gflops=1.0)
    fast = replace(device("b", 1.0, 100), peak_gflops=9.0)
    far = layers_of([slow, fast], topology="switch", link_latency_ms=50)
    assert halda_ring(far, [1], "code").windows == (1, 7)
    assert halda_ring(far, [1], "paper").windows == (1, 7)  # a device that has layers has its hop
    near = replace(fast, memory_gb_per_s=0.1)  # and what it reads is not counted either
    layers = layers_of([slow, near])
    assert halda_ring(layers, [1], "code").windows == (1, 7)
    assert halda_ring(layers, [1], "paper").windows == (8, 0)


def test_a_slow_disk_is_not_streamed_from() -> None:
    """Below 0.1 GB/s a device has what it holds, as in prima.cpp."""
    first = replace(device("a", 1.0, room_of(2, master=True)), disk_gb_per_s=1.0)
    slow = replace(device("b", 9.0, room_of(3)), disk_gb_per_s=0.09)
    plan = halda_ring(layers_of([first, slow], streams=True), [1], "paper")
    assert plan.windows == (5, 3)


@pytest.mark.parametrize("planner", PLANNERS)
def test_every_planner_gives_all_layers_to_some(planner: str) -> None:
    devices = [device("a", 1.0, 2), device("b", 3.0, 2), device("c", 2.0, 2)]
    plan = PipelineSystem(planner=planner).plan(SHAPE, site_of(devices))
    layers = sorted(shard.layer for shards in plan.shards for shard in shards if shard.layer >= 0)
    assert layers == sorted([*range(8), *range(8)])
    assert plan.chain[0] == 0
