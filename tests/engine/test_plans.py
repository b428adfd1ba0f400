"""Plans: every head, column and layer once, as the proportions say."""

from __future__ import annotations

import itertools

import pytest

from tpi_bench.contract.model import ModelConfig
from tpi_bench.engine import plans

SHAPE = ModelConfig(
    num_layers=3,
    hidden=72,
    num_heads=9,
    num_kv_heads=3,
    head_dim=8,
    intermediate=100,
    vocab=300,
    context_length=512,
)


@pytest.mark.parametrize(
    ("total", "proportions", "sizes"),
    [
        (9, [1, 1], [5, 4]),
        (9, [1, 1, 1, 1], [3, 2, 2, 2]),
        (9, [1] * 5, [2, 2, 2, 2, 1]),
        (8, [3, 1], [6, 2]),
        (4, [100, 1, 1, 1], [1, 1, 1, 1]),
        (10, [2, 1, 1], [5, 3, 2]),
    ],
)
def test_split_proportional(total: int, proportions: list[float], sizes: list[int]) -> None:
    ranges = plans.split_proportional(total, proportions)
    assert [b - a for a, b in ranges] == sizes
    assert ranges[0][0] == 0
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))


@pytest.mark.parametrize("num_devices", range(1, 10))
def test_tensor_parallel_covers_everything_once(num_devices: int) -> None:
    plan = plans.tensor_parallel(SHAPE, [1.0] * num_devices)
    for layer in range(3):
        attention = [s for own in plan.shards for s in own if s.kind == "attn" and s.layer == layer]
        heads = [head for s in attention for head in range(*s.heads)]
        assert heads == list(range(9))
        for shard in attention:
            needed = {head // 3 for head in range(*shard.heads)}
            assert needed == set(range(*shard.kv_heads))
        assert [s.adds_bias for s in attention] == [True] + [False] * (num_devices - 1)
        columns = [
            c
            for own in plan.shards
            for s in own
            if s.kind == "ffn" and s.layer == layer
            for c in range(*s.columns)
        ]
        assert columns == list(range(100))
    assert [s.kind for s in plan.shards[0]][:: len(plan.shards[0]) - 1] == ["input", "output"]
    assert all(s.kind in ("attn", "ffn") for own in plan.shards[1:] for s in own)


def test_more_devices_than_heads_or_layers_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"num_devices=10 is more than the model's 9 attention heads"
    ):
        plans.tensor_parallel(SHAPE, [1.0] * 10)
    with pytest.raises(ValueError, match=r"num_devices=4 is more than the model's 3 layers"):
        plans.layer_parallel(SHAPE, [1.0] * 4)
