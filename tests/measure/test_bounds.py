"""A bound is never above what virtual time makes of a way, whatever its system and links."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.advising import SMALL, asked
from tpi_bench.measure.search import Bounded
from tpi_bench.measure.side_by_side import SideBySide

NETWORKS = {
    "switch": ("network=switch", "network.link_latency_ms=0.05", "network.bandwidth_mbps=300"),
    "jitter": ("network=switch", "network.link_latency_ms=0.4", "network.jitter_ms=0.1"),
    "wifi": ("network=wifi", "network.bandwidth_mbps=2"),
    "stations": (
        "network=wifi",
        "network.link_latency_ms=0",
        "network.bandwidth_mbps=0",
        "network.station_mbps=[2,5,1,8]",
        "network.station_latency_ms=[0.1,0.5,0.2,0]",
    ),
    "wan": ("network=wan",),
    "mesh": ("network=mesh",),
}
# Memory and disks so small that some ways keep everything and some read at every token.
HOUSEHOLD = (
    "[fast(4,0.0011,0.2,0.05,op_overhead_us=1),slow(4,0.002,0.05,0.02),2*mid(2,0.0007,0.1,0.04)]"
)
PER_NETWORK = 25


def some_of(bounded: list[Bounded], seed: str) -> list[Bounded]:
    """A few of each system, and others."""
    drawn = random.Random(seed)
    fit = [each for each in bounded if each[1].lacking_bytes <= 0]
    drawn.shuffle(fit)
    kinds = {(each[0].kind, len(each[0].team)): each for each in fit}
    return [*kinds.values(), *fit[:PER_NETWORK]]


@pytest.fixture(scope="module")
def workers() -> Iterator[SideBySide]:
    """One process for all tests here: another would trace the same computations."""
    workers = SideBySide(1)
    yield workers
    workers.end()


@pytest.mark.parametrize("network", NETWORKS)
def test_no_way_is_faster_than_its_bound(
    network: str, workers: SideBySide, cache_dir: Path
) -> None:
    given = (*SMALL, f"device={HOUSEHOLD}", *NETWORKS[network])
    home = asked(*given, cache_dir=cache_dir)
    chosen = some_of(home.bounded(), network)
    records = workers.records(home.settings(way) for way, _ in chosen)
    timed, near = 0, 0
    for (way, bound), record in zip(chosen, records, strict=True):
        run = record.run
        assert run.status in ("ok", "oom"), run.error
        if run.status == "ok":
            timed += 1
            assert bound.token_s <= run.token_latency_s * (1 + 1e-9), way
            near += bound.token_s > 0.5 * run.token_latency_s
    assert timed > 20
    assert near > timed / 4  # else they would rule nothing out


def test_what_does_not_fit_for_certain_does_not(workers: SideBySide, cache_dir: Path) -> None:
    given = (*SMALL, f"device={HOUSEHOLD}", "network=switch", "model.weights=float32")
    home = asked(*given, cache_dir=cache_dir)
    lacking = [each for each in home.bounded() if each[1].lacking_bytes > 0]
    assert "galaxy" in {way.system for way, _ in lacking}
    records = workers.records(home.settings(way) for way, _ in lacking[::9])
    assert {record.run.status for record in records} == {"oom"}
