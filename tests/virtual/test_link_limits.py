"""No token is faster than what its links allow, and where only links count it is nearly as fast."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import pytest

from baselines.dllama import DllamaSystem
from baselines.galaxy import GalaxySystem
from baselines.hybrid import HybridSystem
from baselines.jupiter import JupiterSystem
from baselines.pipeline import PipelineSystem
from baselines.prima import PrimaSystem
from tests.helpers.models_zoo import Variant, make_checkpoint
from tests.helpers.virtual import IDEAL, run_here, virtual_job
from tpi_bench.contract.network import NetworkConfig, Traffic
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.tpi import TpiSystem

# Where bytes count and where latency does, and a channel that all share.
NETWORKS = {
    "bytes": NetworkConfig(topology="switch", link_latency_ms=0.01, bandwidth_mbps=8),
    "latency": NetworkConfig(topology="switch", link_latency_ms=5, bandwidth_mbps=80),
    "wifi": NetworkConfig(topology="wifi", link_latency_ms=0.01, bandwidth_mbps=8),
    "stations": NetworkConfig(topology="wifi", station_mbps=[9, 7, 9, 8, 9], link_latency_ms=1),
}
SYSTEMS = [
    *(TpiSystem(collective=name, wire=wire) for name in COLLECTIVES for wire in ("auto", "q8")),
    PipelineSystem(),
    GalaxySystem(),
    PrimaSystem(planner="proportional", rounds=1),
    DllamaSystem(collective="direct", wire="q8", prompt_sync="together"),
    JupiterSystem(planner="proportional", lengths="equal", chunks=3),
]


def gaps_and_limit(
    system: Any, num_devices: int, network: NetworkConfig, folder: Path, cache_dir: Path
) -> tuple[list[float], float]:
    """A token's times on devices that compute in none, in s, and what its links allow."""
    job = virtual_job(system, folder, cache_dir, num_devices, IDEAL, network=network)
    outcome = run_here(job, cache_dir)
    assert outcome.generation is not None, outcome.error
    times = outcome.generation.token_ns
    limit_s = network.least_s(system.traffic(job), network.one_way_ns / 1e9)
    return [(after - before) / 1e9 for before, after in itertools.pairwise(times)], limit_s


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.label}-{s.wire}")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("num_devices", [2, 3, 4])
def test_no_token_beats_its_links(
    system: Any, network: str, num_devices: int, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    gaps, limit_s = gaps_and_limit(
        system, num_devices, NETWORKS[network], checkpoints["mha"], cache_dir
    )
    assert limit_s > 0
    assert min(gaps) > limit_s * (1 - 1e-3)  # nanoseconds are rounded, chunks are whole values


@pytest.mark.parametrize(
    ("system", "most"),
    [
        (TpiSystem(), 1.1),
        (TpiSystem(collective="ring"), 1.2),
        (TpiSystem(collective="direct"), 1.5),
        (TpiSystem(collective="tree"), 1.1),
        (PipelineSystem(), 1.1),
        (GalaxySystem(), 1.3),
        (PrimaSystem(planner="proportional", rounds=1), 1.1),
        (DllamaSystem(collective="direct", wire="q8"), 1.5),
        (JupiterSystem(planner="proportional", lengths="equal", chunks=3), 1.1),
    ],
    ids=lambda value: value if isinstance(value, float) else value.label,
)
def test_bytes_are_what_such_a_token_takes(
    system: Any, most: float, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    gaps, limit_s = gaps_and_limit(system, 4, NETWORKS["bytes"], checkpoints["mha"], cache_dir)
    assert statistics.median(gaps) < most * limit_s


@pytest.mark.parametrize("network", NETWORKS)
def test_tokens_after_a_prompt_that_came_one_by_one(
    network: str, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """The first of them finds less of the last one's messages on the way than the others do, so
    the limit is that of their mean, which is what rows say."""
    system = DllamaSystem(collective="direct", wire="q8")
    gaps, limit_s = gaps_and_limit(system, 3, NETWORKS[network], checkpoints["mha"], cache_dir)
    assert statistics.mean(gaps) > limit_s * (1 - 1e-3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize(("size", "num_devices"), [(2, 4), (3, 3), (1, 3)])
def test_groups_do_not_beat_their_links(
    network: str,
    collective: str,
    size: int,
    num_devices: int,
    checkpoints: dict[str, Path],
    cache_dir: Path,
) -> None:
    system = HybridSystem(group_size=size, collective=collective)
    gaps, limit_s = gaps_and_limit(
        system, num_devices, NETWORKS[network], checkpoints["mha"], cache_dir
    )
    assert min(gaps) > limit_s * (1 - 1e-3)
    if network == "bytes":
        assert statistics.median(gaps) < 1.6 * limit_s


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of six layers, which several numbers of rounds divide."""
    variant = Variant(changes={"num_hidden_layers": 6})
    return make_checkpoint(tmp_path_factory.mktemp("six"), variant)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("rounds", "num_devices"), [(2, 2), (3, 2), (2, 3)])
def test_a_ring_takes_its_hops_every_round(
    network: str, rounds: int, num_devices: int, six: Path, cache_dir: Path
) -> None:
    system = PrimaSystem(planner="proportional", rounds=rounds)
    gaps, limit_s = gaps_and_limit(system, num_devices, NETWORKS[network], six, cache_dir)
    assert min(gaps) > limit_s * (1 - 1e-3)
    if network in ("latency", "bytes"):
        assert statistics.median(gaps) < 1.1 * limit_s


def test_the_terms_of_the_limit() -> None:
    traffic = Traffic(latencies=3, serial_bytes=4e6, all_bytes=10e6)
    assert NetworkConfig().least_s(traffic, 2.0) == 6.0
    switch = NetworkConfig(topology="switch", bandwidth_mbps=8)  # a byte a us
    assert switch.least_s(traffic, 2.0) == pytest.approx(10.0)
    assert NetworkConfig(topology="wifi", bandwidth_mbps=8).least_s(traffic, 1.0) == 10.0
    assert NetworkConfig(topology="wifi", bandwidth_mbps=8).least_s(traffic, 4.0) == 12.0
    stations = NetworkConfig(topology="wifi", station_mbps=[8, 4, 8])
    assert stations.least_s(traffic, 0.0) == pytest.approx(20.0)  # the fastest two: a us twice
    mesh = NetworkConfig(topology="mesh", mesh_links=[[0, 1, 1, 4], [1, 2, 1, 8]])
    assert mesh.least_s(traffic, 0.0) == pytest.approx(4.0)
    free = NetworkConfig(topology="mesh", mesh_links=[[0, 1, 1, 4], [1, 2, 1, 0]])
    assert free.least_s(traffic, 0.0) == 0.0
