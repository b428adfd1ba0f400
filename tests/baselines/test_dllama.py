"""distributed-llama: the same numbers as TPI's direct allreduce in 8 bits, at other times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.dllama import DllamaSystem
from tests.helpers.exact import check
from tests.helpers.models_zoo import prompt_of
from tests.helpers.running import make_job, run_ok
from tests.helpers.sites import SHAPE
from tests.helpers.virtual import IDEAL, answer_of, run_here
from tpi_bench import run
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.engine.tpi import TpiSystem

TYPED = ("model=debug", "testbed=virtual", "workload.prompt_tokens=6", "workload.num_new_tokens=3")


def dllama(**settings: Any) -> DllamaSystem:
    """As its YAML has it."""
    return DllamaSystem(**({"collective": "direct", "wire": "q8"} | settings))


@pytest.mark.parametrize("sync", ["position", "together"])
@pytest.mark.parametrize("devices", [2, 3, 4])
def test_the_bits_are_those_of_the_direct_allreduce_in_8_bits(
    wide: Path, cache_dir: Path, tmp_path: Path, sync: str, devices: int
) -> None:
    """Rows of 128 values are whole groups, so that a position is packed alike on its own."""
    request = Request(prompt_ids=prompt_of(20), num_new_tokens=6, keep_logits=True)
    found = []
    for number, system in enumerate(
        (TpiSystem(collective="direct", wire="q8"), dllama(prompt_sync=sync))
    ):
        path = tmp_path / f"{number}.pt"
        job = make_job(
            system, wide, cache_dir, num_devices=devices, request=request, logits_path=str(path)
        )
        found.append((answer_of(job).token_ids, torch.load(path)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("devices", "window"), [(2, "off"), (3, 2)])
def test_tokens_are_those_of_transformers(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path, devices: int, window: Any
) -> None:
    """With sums that travel as computed, of which each position's is a tensor of its own."""
    system = dllama(wire="auto", window=window)
    check(system, checkpoints["gqa"], cache_dir, tmp_path, devices, 200, here=True)


def test_in_processes(wide: Path, cache_dir: Path) -> None:
    """A prompt takes as many bytes as all at once, in more messages."""
    request = Request(prompt_ids=prompt_of(20), num_new_tokens=4)
    found = [
        run_ok(make_job(system, wide, cache_dir, num_devices=2, request=request))
        for system in (dllama(), dllama(prompt_sync="together"))
    ]
    ids = [outcome.generation and outcome.generation.token_ids for outcome in found]
    assert ids[0] == ids[1] is not None
    sent = [sum(device.bytes_sent for device in outcome.devices) for outcome in found]
    assert sent[0] == sent[1]


def test_a_prompt_waits_for_each_of_its_positions(wide: Path, cache_dir: Path) -> None:
    """Five layers of two sums; a hop of 1 ms twice. Devices take no time, so that a token takes
    2 ms for its embedding and 10 sums of 2 ms, and a prompt of 20 just as much, or one by one 200.
    """
    network = NetworkConfig(topology="switch", link_latency_ms=1)
    request = Request(prompt_ids=prompt_of(20), num_new_tokens=3)
    ttfts, gaps = [], []
    for sync in ("together", "position"):
        job = make_job(
            dllama(prompt_sync=sync),
            wide,
            cache_dir,
            num_devices=4,
            request=request,
            network=network,
            profiles=(IDEAL,) * 4,
        )
        generation = run_here(job, cache_dir).generation
        assert generation is not None
        times = generation.token_ns
        ttfts.append(times[0] - generation.request_ns)
        gaps.append(times[2] - times[1])
    assert ttfts == [22_000_000, 402_000_000]
    assert gaps == [22_000_000, 22_000_000]


@pytest.mark.parametrize("devices", [3, 8])
def test_strict_runs_where_the_program_does(devices: int) -> None:
    strict = dllama(strict=True)
    plan = strict.plan(SHAPE, Site(proportions=[1.0] * 4))
    assert plan.num_devices == 4
    words = rf"num_devices={devices} with system.strict=true.* 4 KV heads; choose one of 1, 2, 4"
    with pytest.raises(ValueError, match=words):
        strict.plan(SHAPE, Site(proportions=[1.0] * devices))
    with pytest.raises(ValueError, match="distributed-llama divides evenly"):
        strict.plan(SHAPE, Site(proportions=[1.0, 2.0]))
    assert dllama().plan(SHAPE, Site(proportions=[1.0, 2.0, 1.0])).num_devices == 3


def test_as_it_is_typed() -> None:
    result = run("system=dllama", "testbed.num_devices=2", *TYPED)
    assert (result.status, result.row.label, result.row.variant) == ("ok", "dllama", "")
    with pytest.raises(ValueError, match=r"^testbed.num_devices=3 with system.strict=true[^\n]*$"):
        run("system=dllama", "system.strict=true", "testbed.num_devices=3", *TYPED)
    with pytest.raises(ValueError, match=r"system.prompt_sync=twice is unknown; choose one of pos"):
        run("system=dllama", "system.prompt_sync=twice", *TYPED)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "dllama"),
        ({"prompt_sync": "together", "window": 2}, "dllama window 2 prompt together"),
        ({"wire": "float16"}, "dllama wire float16"),
        ({"wire": "auto", "collective": "star"}, "dllama star wire auto"),
    ],
)
def test_names_in_figures(settings: dict[str, Any], line: str) -> None:
    system = dllama(**settings)
    assert f"{system.label} {system.variant}".strip() == line
