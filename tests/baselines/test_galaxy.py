"""Galaxy: plans for unequal devices, tokens as of a dense model, the ring's times and overlap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from baselines.galaxy import GalaxySystem, galaxy_steps, split_positions
from baselines.galaxy_shares import balanced_shares
from tests.helpers.exact import check
from tests.helpers.models_zoo import VARIANTS
from tests.helpers.running import make_job
from tests.helpers.virtual import IDEAL, MS, Scripted, world_of
from tpi_bench.contract.job import Output
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.contract.runtime import SpanLog
from tpi_bench.models.hf_config import read_config


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [1, 3, 200])
def test_tokens_are_those_of_the_dense_model(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path, devices: int, length: int
) -> None:
    here = devices != 3
    check(GalaxySystem(), checkpoints["gqa"], cache_dir, tmp_path, devices, length, here=here)


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=list(VARIANTS))
def test_variants(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path, number: int
) -> None:
    devices, length = (2, 3, 4)[number % 3], (200, 7)[number % 2]
    source = list(checkpoints.values())[number]
    check(GalaxySystem(), source, cache_dir, tmp_path, devices, length, here=True)


def test_positions_are_divided_evenly() -> None:
    assert split_positions(7, 3) == [(0, 3), (3, 5), (5, 7)]
    assert split_positions(1, 3) == [(0, 1), (1, 1), (1, 1)]


def test_shares_follow_capacity() -> None:
    assert balanced_shares([1, 3], 100, 0, None) == [0.25, 0.75]
    assert balanced_shares([1, 3], 100, 0, [100, 100]) == [0.25, 0.75]


def test_what_does_not_fit_goes_to_the_others() -> None:
    """Of three quarters the strong device holds 60; then the master's 20 leave it 15."""
    assert balanced_shares([1, 3], 100, 0, [100, 60]) == pytest.approx([0.4, 0.6])
    shares = balanced_shares([2, 1, 1], 100, 20, [35, 60, 50])
    assert shares == pytest.approx([0.15, 0.425, 0.425])


def test_too_little_memory_is_left_to_the_devices_to_tell() -> None:
    assert sum(balanced_shares([1, 3], 100, 0, [10, 10])) == pytest.approx(1.0)


def test_a_plan_follows_the_profiles(checkpoints: dict[str, Path]) -> None:
    config = read_config(checkpoints["gqa"])
    strong = replace(IDEAL, memory_gb_per_s=20.0)
    weak = replace(IDEAL, memory_gb_per_s=10.0)
    site = Site(proportions=[1.0, 1.0], profiles=(weak, strong))
    plan = GalaxySystem().plan(config, site)
    assert [shards[0 if rank else 1].heads for rank, shards in enumerate(plan.shards)] == [
        (0, 3),
        (3, 9),
    ]
    given = GalaxySystem().plan(config, replace(site, proportions=[8.0, 1.0]))
    assert given.shards[0][1].heads == (0, 8)


def test_its_name_in_figures() -> None:
    assert (GalaxySystem().label, GalaxySystem().variant) == ("Galaxy", "")


def run_virtually(
    checkpoints: dict[str, Path], cache_dir: Path, length: int, times_ns: dict[str, int]
) -> tuple[list[int], list[SpanLog], int]:
    """Token times on 3 devices a millisecond apart, the devices' spans, and the layers."""
    network = NetworkConfig(topology="switch", link_latency_ms=0.5)
    request = Request(prompt_ids=tuple(range(length)), num_new_tokens=3, warmup_tokens=0)
    job = make_job(
        GalaxySystem(),
        checkpoints["gqa"],
        cache_dir,
        num_devices=3,
        request=request,
        network=network,
    )
    world = world_of(IDEAL, IDEAL, IDEAL, network=network, costs=Scripted(**times_ns))
    found = world.run(lambda rt: job.program.run_device(rt, job, Output()))[0]
    assert found is not None
    return found.token_ns, [rt.log for rt in world.runtimes], job.config.num_layers


def test_golden_times_of_a_round_a_block(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    stamps, _, layers = run_virtually(checkpoints, cache_dir, 1, {})
    assert galaxy_steps(3, layers) == 2 * layers * 3
    assert stamps == [n * 2 * layers * 3 * MS for n in (1, 2, 3)]


def test_products_hide_behind_the_ring_in_prefill(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """Tiles of 1 ms of product in each of the 2 (N - 1) steps of a ms: only the last of each shows.

    Gathering takes 2 ms and the product of the last tile; reducing the product of the first tile
    and 2 ms; in the steps between, products take as long as tiles travel and cost nothing.
    """
    stamps, logs, layers = run_virtually(checkpoints, cache_dir, 6, {"enter": MS, "leave": MS})
    in_turn_ms = 2 * layers * (2 + 3 + 2 + 3)  # steps and products one after the other
    assert 2 * layers * (2 + 1 + 1 + 2) * MS <= stamps[0] < 0.75 * in_turn_ms * MS
    for log in logs:
        busy = sum(
            span.end_ns - span.start_ns for span in log.spans if span.key in ("enter", "leave")
        )
        assert busy >= 2 * layers * 6 * MS
