"""Everything that can go wrong with a cluster, once each (`tests/cluster_demo/faults.py` tries more
often): the row names the node within seconds, others go on, and nothing is left.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster_demo.faults import FAULTS, Stage, Tried, head_killed, line_of, small_disk, staged

has_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
MOST_S = 7.0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Stage]:
    with (
        small_disk() as disk,
        staged(tmp_path_factory.mktemp("faults"), cache_dir, disk) as stage,
    ):
        yield stage


def check(tried: Tried) -> None:
    assert tried.is_right, tried
    assert tried.took_s < MOST_S
    assert tried.left == []


@has_ray
@pytest.mark.cluster
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_a_fault_is_named_and_leaves_nothing(stage: Stage, name: str, tls: bool) -> None:
    [fault] = [each for each in FAULTS if each.name == name]
    if fault.needs_root and not stage.machines.has_links:
        pytest.skip("without root there are no links to cut and no disks to fill")
    if tls and name not in ("node", "device", "hang"):
        pytest.skip("encryption changes nothing of it")
    arguments = (*fault.arguments, f"network.tls={str(tls).lower()}")
    check(replace(fault, arguments=arguments).tried(stage))


@has_ray
@pytest.mark.cluster
def test_a_killed_head_ends_the_point_and_leaves_nothing(cache_dir: Path, tmp_path: Path) -> None:
    tried = head_killed(tmp_path, cache_dir, None)
    assert tried.is_right, tried
    assert tried.took_s < 15
    assert tried.left == []


def test_a_line_of_the_table_counts_what_was_right_and_what_was_left() -> None:
    tries = [Tried(1.0, "a", True, []), Tried(3.0, "b at 10.77.4.2", False, ["device 7"])]
    words = line_of("link", tries).split()
    assert words[:7] == ["link", "2", "1", "2.0", "[1.0,", "3.0]", "1"]
    assert words[7:] == ["b", "at", "NET.2"]
