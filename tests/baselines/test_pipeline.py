"""What the pipeline says of itself; its tokens are held against the oracle in tests/engine."""

from __future__ import annotations

from typing import Any

import pytest

from baselines.pipeline import PipelineSystem, pipeline_steps
from tpi_bench.contract.device import ideal_device
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Site


def test_steps_of_a_token() -> None:
    assert pipeline_steps(4) == 4
    assert pipeline_steps(1) == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "pipeline"),
        ({"window": 2, "retain_every": 4}, "pipeline window 2 keep 4"),
        ({"window": 2, "wire": "q8"}, "pipeline window 2 wire q8"),
        ({"planner": "edgeshard"}, "pipeline"),
        ({"name": "edgeshard", "planner": "edgeshard"}, "EdgeShard"),
        ({"name": "edgeshard", "planner": "edgeshard", "window": 1}, "EdgeShard window 1"),
    ],
)
def test_names_in_figures(settings: dict[str, Any], line: str) -> None:
    system = PipelineSystem(**settings)
    assert f"{system.label} {system.variant}".strip() == line


@pytest.mark.parametrize(("wire", "nbytes"), [("auto", 384), ("float16", 192), ("q8", 102)])
def test_edgeshard_plans_for_what_is_sent(wire: str, nbytes: int) -> None:
    """A hidden state of 96 values."""
    asked = []

    def transfers_s(size: int) -> list[list[float]]:
        asked.append(size)
        return [[0.0, 0.0], [0.0, 0.0]]

    shape = ModelConfig(
        num_layers=2,
        hidden=96,
        num_heads=3,
        num_kv_heads=3,
        head_dim=32,
        intermediate=64,
        vocab=10,
        context_length=8,
    )
    site = Site(proportions=[1, 1], profiles=(ideal_device(),) * 2, transfers_s=transfers_s)
    PipelineSystem(planner="edgeshard", wire=wire).plan(shape, site)
    assert asked == [nbytes]
