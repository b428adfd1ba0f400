"""What TPI says of itself: latencies of a token, and its names in figures."""

from __future__ import annotations

from typing import Any

import pytest

from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.tpi import TpiSystem, token_steps


@pytest.mark.parametrize("name", COLLECTIVES)
def test_one_device_has_nothing_to_add(name: str) -> None:
    assert token_steps(COLLECTIVES[name], 1, 30) == 0


@pytest.mark.parametrize(
    ("name", "steps"),
    [("star", 60 * 2), ("tree", 60 * 4 - 1), ("ring", 60 * 6), ("direct", 60)],
)
def test_steps_of_a_token_on_4_devices(name: str, steps: int) -> None:
    assert token_steps(COLLECTIVES[name], 4, 30) == steps


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "TPI star"),
        ({"collective": "ring"}, "TPI ring"),
        ({"window": 2}, "TPI star window 2"),
        (
            {"window": 2, "retain_every": 8, "resident_io": True},
            "TPI star window 2 keep 8 with head",
        ),
        ({"resident_io": True}, "TPI star with head"),
        (
            {"window": 4, "resident_io": True, "wire": "q8"},
            "TPI star window 4 with head wire q8",
        ),
        ({"name": "mmap", "loading": "mmap", "wire": "float16"}, "mmap wire float16"),
        ({"name": "mmap", "loading": "mmap"}, "mmap"),
        ({"name": "blocking", "loading": "blocking", "resident_io": True}, "blocking"),
    ],
)
def test_names_in_figures(settings: dict[str, Any], line: str) -> None:
    system = TpiSystem(**settings)
    assert f"{system.label} {system.variant}".strip() == line
