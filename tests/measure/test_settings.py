"""What makes a point another point, and what its settings must be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.helpers.settings import settings_of
from tpi_bench.measure.settings import Settings, check_proportions

BASE = ("model=debug", "workload.prompt_ids=[1]")


@pytest.mark.parametrize("proportions", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")]])
def test_bad_proportions_are_refused(proportions: list[float]) -> None:
    with pytest.raises(ValueError, match="must hold 2 positive numbers"):
        check_proportions(2, proportions)


def test_proportions_are_told_in_short() -> None:
    with pytest.raises(ValueError, match=r"proportions=\[0\.333333,1,2\] .*, as \[1,1\] \("):
        check_proportions(2, [1 / 3, 1.0, 2.0])


def with_group(settings: Settings, group: str, changes: dict[str, Any]) -> Settings:
    return replace(settings, raw=settings.raw | {group: settings.raw[group] | changes})


def test_where_a_class_stands_makes_no_other_point() -> None:
    settings = settings_of(*BASE)
    for group in ("system", "model", "testbed", "network"):
        moved = with_group(settings, group, {"_target_": "somewhere.Else"})
        assert moved.point == settings.point
        assert moved.config_hash == settings.config_hash
    assert with_group(settings, "system", {"window": 3}).point != settings.point


def test_a_repeat_is_another_point_of_the_same_configuration() -> None:
    first, second = settings_of(*BASE), settings_of(*BASE, "repeat=1")
    assert first.point != second.point
    assert first.config_hash == second.config_hash


@pytest.mark.parametrize(
    ("change", "testbed", "is_another"),
    [
        ("cache=warm", "processes", True),
        ("cache=warm", "virtual", False),
        ("device=raspberry_pi_5", "processes", False),
        ("device=raspberry_pi_5", "virtual", True),
        ("timeout_s=7", "processes", False),
        ("results_dir=elsewhere", "processes", False),
        ("network.link_latency_ms=3", "processes", True),
        ("network.tls=true", "processes", True),
    ],
)
def test_what_does_not_matter_makes_no_other_point(
    change: str, testbed: str, is_another: bool
) -> None:
    own = (*BASE, f"testbed={testbed}", "testbed.num_devices=2")
    assert (settings_of(*own).point != settings_of(*own, change).point) is is_another


def test_what_there_was_no_setting_for_is_what_it_is_without() -> None:
    """Rows from before there was TLS are found again."""
    settings = settings_of(*BASE)
    older = dict(settings.raw["network"])
    assert older.pop("tls") is False
    before = replace(settings, raw=settings.raw | {"network": older})
    assert (before.point, before.config_hash) == (settings.point, settings.config_hash)


def test_one_device_is_one_point_on_every_network() -> None:
    own = (*BASE, "testbed.num_devices=1")
    changed = settings_of(*own, "network=paper", "network.link_latency_ms=3")
    assert changed.point == settings_of(*own).point
    assert changed.config_hash == settings_of(*own).config_hash
    assert settings_of(*own, "system.window=2").point != settings_of(*own).point


def test_a_library_is_one_point_on_every_network() -> None:
    own = (*BASE, "system=transformers")
    changed = settings_of(*own, "network.link_latency_ms=3", "testbed.num_devices=3")
    assert changed.point == settings_of(*own).point
    assert changed.num_devices == 1
