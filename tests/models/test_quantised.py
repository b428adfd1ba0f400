"""Quantised matrices: packing, how a model may be cut, and what is refused by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from tests.helpers.command_line import run
from tests.helpers.running import model_of
from tests.helpers.settings import settings_of
from tpi_bench.contract.model import BYTES_PER_WEIGHT, ModelConfig, resolve_types
from tpi_bench.contract.plan import Site
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.measure.prepare import prepare
from tpi_bench.models.quantised import GGUF_TYPES, held_rows, pack, packed_rows, unpack


@pytest.mark.parametrize("weights", ["q8", "q4"])
def test_numbers_and_scales_make_the_values_that_gguf_makes(weights: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 96)).astype(np.float32)
    values[3, 32:64] = 0
    packed = pack(values, weights)
    assert packed.nbytes == values.size * BYTES_PER_WEIGHT[weights]
    numbers, scales = unpack(packed, weights)
    assert scales.shape == (7, 3)
    assert scales.dtype == np.float16
    if weights == "q4":
        assert numbers.shape == (7, 48)
        halves = numbers.reshape(7, 3, 16)
        numbers = np.concatenate((halves & 15, halves >> 4), axis=-1).astype(np.int8) - 8
    again = (numbers.reshape(7, 3, 32) * scales[..., None].astype(np.float32)).reshape(7, 96)
    expected = dequantize(packed, gguf.GGMLQuantizationType[GGUF_TYPES[weights]])
    assert again.tobytes() == expected.tobytes()
    largest = np.abs(values).reshape(7, 3, 32).max(-1, keepdims=True)
    error = np.abs(again - values).reshape(7, 3, 32)
    assert (error <= largest / (127 if weights == "q8" else 8) * 1.01).all()


@pytest.mark.parametrize("weights", ["q8", "q4"])
def test_columns_are_cut_before_or_after(wide: Path, weights: str) -> None:
    """A slice at a multiple of a group has the numbers of the whole."""
    checkpoint = model_of(wide).checkpoint
    name = "model.layers.0.mlp.down_proj.weight"
    whole = packed_rows(checkpoint, name, (5, 40), weights)
    group = whole.shape[1] // 6
    part = packed_rows(checkpoint, name, (5, 40), weights, (64, 160))
    assert np.array_equal(part, whole[:, 2 * group : 5 * group])
    values = held_rows(checkpoint, name, (5, 40), weights, (64, 160))
    assert np.array_equal(values, held_rows(checkpoint, name, (5, 40), weights)[:, 64:160])


def test_what_auto_means() -> None:
    assert resolve_types("auto", "auto") == ("float32", "float32")
    assert resolve_types("bfloat16", "auto") == ("bfloat16", "bfloat16")
    assert resolve_types("auto", "float16") == ("float16", "float16")
    assert resolve_types("auto", "q4") == ("float32", "q4")
    assert resolve_types("bfloat16", "q8") == ("bfloat16", "q8")


HALF_GROUPS = ModelConfig(
    num_layers=1,
    hidden=128,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    intermediate=192,
    vocab=64,
    context_length=64,
)


@pytest.mark.parametrize("proportions", [[1.0], [5.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
def test_cuts_respect_groups(proportions: list[float]) -> None:
    """Heads of 16 stay in pairs, and columns in groups of 32."""
    plan = TpiSystem().plan(HALF_GROUPS, Site(proportions=proportions, weights="q8"))
    for shards in plan.shards:
        for shard in shards:
            assert shard.heads[0] % 2 == shard.heads[1] % 2 == 0
            assert shard.columns[0] % 32 == shard.columns[1] % 32 == 0
    columns = [shards[-1 if rank else -2].columns for rank, shards in enumerate(plan.shards)]
    assert columns[0][0] == 0
    assert columns[-1][1] == 192
    assert all(a[1] == b[0] for a, b in itertools.pairwise(columns))


GROUPED = ("model.hidden=128", "model.num_heads=8", "model.num_kv_heads=4")  # heads of 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (*GROUPED, "model.weights=q4", "testbed.num_devices=5"),
            "testbed.num_devices=5 is more than the model's 8 attention heads, which 32-value "
            "groups cut in 4; tensor parallelism takes 1 to 4 devices",
        ),
        (
            (*GROUPED, "model.weights=q8", "model.intermediate=64", "testbed.num_devices=3"),
            "testbed.num_devices=3 is more than the model's 64 FFN columns, which 32-value groups "
            "cut in 2; tensor parallelism takes 1 to 2 devices",
        ),
        (
            ("model.weights=q8", "model.intermediate=100"),
            "model.weights=q8 are groups of 32 values, and model.layers.0.mlp.down_proj.weight has "
            "rows of 100; choose float32, float16 or bfloat16 for this model",
        ),
        (
            ("model.weights=q5",),
            "model.weights=q5 is unknown; choose one of auto, float32, float16, bfloat16, q8, q4",
        ),
        (
            ("model.dtype=q8",),
            "model.dtype=q8 is unknown; choose one of auto, float32, float16, bfloat16",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(
    cache_dir: Path, given: tuple[str, ...], message: str
) -> None:
    common = ("model=debug", "workload.prompt_ids=[1,2]", f"cache_dir={cache_dir}")
    with pytest.raises(ValueError, match=r"model|testbed") as refused:
        prepare(settings_of(*common, *given))
    assert str(refused.value) == message


def test_the_command_line_says_so_in_one_line(cache_dir: Path) -> None:
    done = run(
        "task=generate",
        "model=debug",
        *GROUPED,
        "model.weights=q4",
        "testbed.num_devices=5",
        "workload.prompt_ids=[1,2]",
        cache_dir=cache_dir,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.strip().split("\n")
    assert line.startswith("error: testbed.num_devices=5 is more than the model's 8 attention")
