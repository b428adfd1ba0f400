"""What the pipeline says of itself; its tokens are held against the oracle in tests/engine."""

from __future__ import annotations

from typing import Any

import pytest

from baselines.pipeline import PipelineSystem, pipeline_steps


def test_steps_of_a_token() -> None:
    assert pipeline_steps(4) == 4
    assert pipeline_steps(1) == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "pipeline"),
        ({"window": 2, "retain_every": 4}, "pipeline window 2 keep 4"),
        ({"planner": "edgeshard"}, "pipeline"),
        ({"name": "edgeshard", "planner": "edgeshard"}, "EdgeShard"),
        ({"name": "edgeshard", "planner": "edgeshard", "window": 1}, "EdgeShard window 1"),
    ],
)
def test_names_in_figures(settings: dict[str, Any], line: str) -> None:
    system = PipelineSystem(**settings)
    assert f"{system.label} {system.variant}".strip() == line
