"""Token-exact against Transformers: every variant, device count, collective, window and prompt.

Weights in every precision. The whole product takes an hour (`make test_product`), so the
combinations of the ordinary run are chosen to pair every value with every other. Each value is also
met in real processes with sockets and direct reads; what varies the numbers alone (variants of
models, precisions) and further pairs run the same programs in this process.
`+experiment=exactness` does the demo model.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from baselines.galaxy import GalaxySystem
from baselines.pipeline import PipelineSystem
from tests.helpers.exact import NUM_NEW, check
from tests.helpers.models_zoo import (
    HALF_GROUPS,
    VARIANTS,
    Variant,
    make_checkpoint,
    oracle,
    prompt_of,
)
from tests.helpers.running import make_job, run_ok
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Request
from tpi_bench.engine import collectives
from tpi_bench.engine.plans import layer_chain
from tpi_bench.engine.tpi import TpiSystem


class Chain(PipelineSystem):
    """With a plan of its own."""

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        stages = [(0, 0, 1), (2, 1, 3), (1, 3, config.num_layers)]
        return layer_chain(config, stages, site.num_devices)


COLLECTIVES = tuple(collectives.COLLECTIVES)
WINDOWS = (("off", 0), (1, 0), (2, 0), (4, 0), (2, 2))  # window and retention


# Row i of a Latin square: over the rows, every device count meets every collective and every
# window. In the first two rows devices are processes, which each value meets.
SQUARE = [
    (
        devices,
        COLLECTIVES[(devices + i) % len(COLLECTIVES)],
        *WINDOWS[(devices + i) % 5],
        (1, 200)[(devices + i) % 2],
        i >= 2,
    )
    for devices, i in itertools.product((1, 2, 3, 4, 5), range(5))
    if devices > 1 or i < 5
]


@pytest.mark.parametrize(("devices", "collective", "window", "retain", "length", "here"), SQUARE)
def test_pairs_of_values(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    devices: int,
    collective: str,
    window,
    retain: int,
    length: int,
    here: bool,
) -> None:
    system = TpiSystem(collective=collective, window=window, retain_every=retain)
    check(system, checkpoints["gqa"], cache_dir, tmp_path, devices, length, here=here)


def test_every_value_meets_real_processes() -> None:
    real = [row[:5] for row in SQUARE if not row[5]]
    found = [{row[place] for row in real} for place in (0, 1, 4)]
    assert found == [{1, 2, 3, 4, 5}, set(COLLECTIVES), {1, 200}]
    assert {row[2:4] for row in real} == set(WINDOWS)


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=list(VARIANTS))
@pytest.mark.parametrize("case", [0, pytest.param(1, marks=pytest.mark.product), 2])
def test_variants(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path, number: int, case: int
) -> None:
    """Each variant on 2 and 5 devices with changing collectives and windows, and in the product
    on 4.
    """
    name = list(VARIANTS)[number]
    window, retain = WINDOWS[(number + case) % 5]
    system = TpiSystem(
        collective=COLLECTIVES[(number + case) % len(COLLECTIVES)],
        window=window,
        retain_every=retain,
        resident_io=number % 2 == 0,
    )
    devices, length = (2, 4, 5)[case], (200, 200, 1)[(case + number) % 3]
    check(system, checkpoints[name], cache_dir, tmp_path, devices, length, here=True)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("window", "length"), [("off", 200), (1, 1), (2, 200)])
@pytest.mark.parametrize("name", ["gqa", "qwen2"])
def test_pipeline(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    devices: int,
    window,
    length: int,
    name: str,
) -> None:
    system, here = PipelineSystem(window=window), name != "gqa" or devices in (3, 4)
    check(system, checkpoints[name], cache_dir, tmp_path, devices, length, here=here)


every_window_and_prompt = pytest.mark.parametrize(
    ("window", "retain", "length"), [(*w, n) for w, n in itertools.product(WINDOWS, (1, 200))]
)


@pytest.mark.product
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("devices", "collective"), [(1, "star"), *itertools.product((2, 3, 4, 5), COLLECTIVES)]
)
@every_window_and_prompt
def test_product(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    name: str,
    devices: int,
    collective: str,
    window,
    retain: int,
    length: int,
) -> None:
    """A single device has nothing to add up, so it meets one collective."""
    system = TpiSystem(collective=collective, window=window, retain_every=retain)
    check(system, checkpoints[name], cache_dir, tmp_path, devices, length)


@pytest.mark.product
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5])
@every_window_and_prompt
def test_product_of_the_pipeline(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    name: str,
    devices: int,
    window,
    retain: int,
    length: int,
) -> None:
    system = PipelineSystem(window=window, retain_every=retain)
    check(system, checkpoints[name], cache_dir, tmp_path, devices, length)


@pytest.mark.parametrize("loading", ["mmap", "blocking", "faulted"])
@pytest.mark.parametrize(("devices", "length"), [(1, 200), (3, 1)])
@pytest.mark.parametrize("name", ["gqa", "tied", "bf16"])
def test_other_ways_to_get_weights(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    loading: str,
    devices: int,
    length: int,
    name: str,
) -> None:
    system = TpiSystem(loading=loading, resident_io=loading != "mmap")
    here = name != "gqa"
    check(system, checkpoints[name], cache_dir, tmp_path, devices, length, here=here)


@pytest.fixture(scope="module")
def grouped(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose rows are whole groups; a group is one head, or two, with a tied head."""
    half = make_checkpoint(tmp_path_factory.mktemp("half"), Variant(changes=HALF_GROUPS))
    return {"wide": wide, "half": half}


SYSTEMS = {
    "one": (TpiSystem(), [1.0]),
    "direct": (TpiSystem(collective="direct"), [1.0, 1.0]),
    "ring": (TpiSystem(collective="ring", window=2), [5.0, 1.0, 2.0]),
    "tree": (TpiSystem(collective="tree", window=2, retain_every=2), [1.0, 1.0, 2.0]),
    "pipeline": (PipelineSystem(window=2), [2.0, 1.0]),
    "mmap": (TpiSystem(loading="mmap"), [1.0]),
    "blocking": (TpiSystem(loading="blocking", resident_io=True), [1.0, 3.0]),
    "galaxy": (GalaxySystem(), [1.0, 2.0, 1.0]),
}


@pytest.mark.parametrize(
    ("name", "weights", "system", "length"),
    [
        ("wide", "q8", "one", 200),
        ("wide", "q8", "ring", 1),
        ("wide", "q8", "mmap", 1),
        ("wide", "q8", "galaxy", 200),
        ("wide", "q4", "one", 1),
        ("wide", "q4", "tree", 200),
        ("wide", "q4", "pipeline", 1),
        ("wide", "q4", "blocking", 200),
        ("half", "q8", "direct", 200),
        ("half", "q8", "pipeline", 1),
        ("half", "q4", "one", 200),
        ("half", "q4", "ring", 200),
        ("half", "q4", "galaxy", 1),
        ("wide", "bfloat16", "ring", 200),
        ("wide", "bfloat16", "one", 1),
        ("wide", "float16", "one", 200),
        ("half", "float16", "direct", 1),
    ],
)
def test_narrow_weights_computed_with_in_fp32(
    grouped: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    name: str,
    weights: str,
    system: str,
    length: int,
) -> None:
    """Every token is that of Transformers on the values that the weights have."""
    program, shares = SYSTEMS[system]
    check(
        program,
        grouped[name],
        cache_dir,
        tmp_path,
        len(shares),
        length,
        weights=weights,
        proportions=shares,
        here=True,
    )


@pytest.mark.parametrize(
    ("name", "weights", "dtype", "system", "length"),
    [
        ("wide", "bfloat16", "bfloat16", "one", 200),
        ("wide", "bfloat16", "bfloat16", "ring", 200),
        ("half", "bfloat16", "bfloat16", "pipeline", 200),
        ("wide", "float16", "float16", "one", 200),
        ("half", "float16", "float16", "direct", 200),
        ("wide", "q8", "bfloat16", "one", 200),
        ("half", "q8", "float16", "pipeline", 200),
        ("wide", "q4", "bfloat16", "tree", 200),
        ("half", "q4", "float16", "one", 200),
        ("wide", "float32", "bfloat16", "one", 1),
    ],
)
def test_half_precision_is_off_by_its_rounding_alone(
    grouped: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    name: str,
    weights: str,
    dtype: str,
    system: str,
    length: int,
) -> None:
    """Logits are within the bound of their type, which is no wider than it must be."""
    program, shares = SYSTEMS[system]
    share = check(
        program,
        grouped[name],
        cache_dir,
        tmp_path,
        len(shares),
        length,
        weights=weights,
        dtype=dtype,
        proportions=shares,
        here=True,
    )
    assert share > 0.05


def test_a_pipeline_over_chosen_devices(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    """The chain passes rank 2 before rank 1 and leaves rank 3 out."""
    prompt = prompt_of(20)
    request = Request(prompt_ids=prompt, num_new_tokens=NUM_NEW)
    job = make_job(Chain(), checkpoints["gqa"], cache_dir, num_devices=4, request=request)
    outcome = run_ok(job)
    assert outcome.generation is not None
    assert outcome.generation.token_ids == oracle(checkpoints["gqa"], prompt, NUM_NEW)[0]
    reads = {device.rank: device.weight_bytes_read for device in outcome.devices}
    assert reads[3] == 0
    assert reads[1] > 0


def test_uneven_proportions(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    prompt = prompt_of(20)
    request = Request(prompt_ids=prompt, num_new_tokens=NUM_NEW)
    job = make_job(
        TpiSystem(),
        checkpoints["gqa"],
        cache_dir,
        num_devices=3,
        request=request,
        proportions=[5.0, 1.0, 2.0],
    )
    outcome = run_ok(job)
    assert outcome.generation is not None
    assert outcome.generation.token_ids == oracle(checkpoints["gqa"], prompt, NUM_NEW)[0]


def test_two_runs_give_the_same_bits(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    request = Request(prompt_ids=prompt_of(30), num_new_tokens=16, keep_logits=True)
    found = []
    for attempt in range(2):
        path = tmp_path / f"{attempt}.pt"
        job = make_job(
            TpiSystem(collective="ring", window=2),
            checkpoints["gqa"],
            cache_dir,
            num_devices=4,
            request=request,
            logits_path=str(path),
        )
        run_ok(job)
        found.append(torch.load(path))
    assert torch.equal(*found)
