"""Accelerate and Transformers as systems: exact, within memory, and nothing left behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from baselines.hf_accelerate import AccelerateSystem
from baselines.hf_transformers import TransformersSystem
from baselines.huggingface import HuggingFaceSystem
from tests.helpers.models_zoo import Variant, make_checkpoint, oracle, prompt_of
from tests.helpers.running import make_job, run_ok
from tests.helpers.settings import settings_of
from tests.helpers.virtual import answer_of
from tpi_bench.contract.job import Job
from tpi_bench.contract.request import Request
from tpi_bench.measure.point import measure
from tpi_bench.measure.prepare import prepare
from tpi_bench.processes.launcher import run_job

NUM_NEW = 24
MAX_LOGIT_DIFFERENCE = 1e-3


def job_of(system, folder: Path, tmp_path: Path, num_new: int = NUM_NEW, **extra) -> Job:
    """A prompt of 20 tokens, whose logits are kept."""
    request = Request(prompt_ids=prompt_of(20), num_new_tokens=num_new, keep_logits=True)
    path = str(tmp_path / "logits.pt")
    return make_job(
        system, folder, tmp_path, num_devices=1, request=request, logits_path=path, **extra
    )


def logits_of(system, folder: Path, tmp_path: Path) -> torch.Tensor:
    """(n, v), in this process, which has loaded the libraries."""
    answer_of(job_of(system, folder, tmp_path))
    return torch.load(tmp_path / "logits.pt")


def listing(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("name", "offload"),
    [
        *((name, "disk") for name in ("gqa", "tied", "biases", "qwen2", "mistral", "bf16")),
        *((name, "cpu") for name in ("tied", "bf16")),
        *((name, "auto") for name in ("tied", "bf16")),
    ],
)
def test_token_exact(checkpoints: dict[str, Path], tmp_path: Path, offload: str, name: str) -> None:
    """`gqa` has several files, `tied` shares the embedding, `bf16` is computed in fp32.

    In this process, which has loaded the libraries; other tests run devices.
    """
    folder = checkpoints[name]
    found = answer_of(job_of(AccelerateSystem(offload=offload), folder, tmp_path))
    logits = torch.load(tmp_path / "logits.pt")
    expected_ids, expected_logits = oracle(folder, prompt_of(20), NUM_NEW)
    assert found.token_ids == expected_ids
    assert (logits - expected_logits).abs().max() < MAX_LOGIT_DIFFERENCE


@pytest.mark.parametrize("offload", ["disk", "cpu"])
def test_only_what_is_no_layer_stays_in_the_model(
    checkpoints: dict[str, Path], tmp_path: Path, offload: str
) -> None:
    system = AccelerateSystem(offload=offload)
    request = Request(prompt_ids=(1,), num_new_tokens=1)
    job = make_job(system, checkpoints["gqa"], tmp_path, num_devices=1, request=request)
    model = system.load(job)
    parameters = dict(model.named_parameters())
    held = {name for name, tensor in parameters.items() if tensor.device.type != "meta"}
    assert held == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert len(parameters) == 3 + 5 * 9


def test_auto_keeps_what_fits(large: Path, tmp_path: Path) -> None:
    """Of 201 MB in bf16: everything, or as much as three quarters of the free memory hold."""
    request = Request(prompt_ids=(1,), num_new_tokens=1)
    job = make_job(
        AccelerateSystem(), large, tmp_path, num_devices=1, request=request, dtype="bfloat16"
    )
    whole = AccelerateSystem(offload="auto").load(job)
    assert all(tensor.device.type != "meta" for tensor in whole.parameters())
    part = AccelerateSystem(offload="auto").load(replace(job, free_bytes=(200_000_000,)))
    held = sum(t.nbytes for t in part.parameters() if t.device.type != "meta")
    assert 0.3 * size_of(large) < held <= 150_000_000
    assert {"cpu", "disk"} == set(part.hf_device_map.values())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 201 MB in bf16, of which no layer takes more than 1/12; 403 MB in fp32."""
    changes = {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "num_hidden_layers": 12,
        "intermediate_size": 2620,
    }
    variant = Variant(changes=changes, dtype=torch.bfloat16)
    return make_checkpoint(tmp_path_factory.mktemp("large") / "model", variant)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_layers_are_not_in_memory(large: Path, tmp_path: Path) -> None:
    """In fp32 from bf16, so no weight that is computed with is merely mapped."""
    before = listing(large)
    sizes = {}
    for system in (AccelerateSystem(), AccelerateSystem(offload="cpu"), TransformersSystem()):
        (device,) = run_ok(job_of(system, large, tmp_path, num_new=3)).devices
        taken = device.peak_anon_bytes - device.start_anon_bytes
        sizes[f"{system.label} {system.variant}".strip()] = taken
    in_fp32 = 2 * size_of(large)
    assert size_of(large) > 190e6
    assert sizes["Transformers"] > in_fp32
    assert sizes["Accelerate cpu"] > in_fp32
    assert sizes["Accelerate"] < in_fp32 / 2  # of this the libraries' code is 0.1 GB
    assert listing(large) == before


def test_nothing_is_left_of_a_device_that_is_killed(large: Path, tmp_path: Path) -> None:
    before = listing(large)
    request = Request(prompt_ids=prompt_of(5), num_new_tokens=500, warmup_tokens=0)
    job = make_job(AccelerateSystem(), large, tmp_path, num_devices=1, request=request, stream=True)
    outcome = run_job(job, on_token=lambda token: kill_devices())
    assert outcome.status == "device_lost"
    assert "killed by signal 9" in str(outcome.error)
    assert listing(large) == before
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_device_that_fails(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["mha"], folder)
    request = Request(prompt_ids=prompt_of(5), num_new_tokens=5)
    job = make_job(AccelerateSystem(), folder, tmp_path, num_devices=1, request=request)
    (folder / "model.safetensors").write_bytes(b"x")
    before = listing(tmp_path)
    outcome = run_job(job)
    assert outcome.status == "error"
    assert "rank 0 failed: SafetensorError" in str(outcome.error)
    assert listing(tmp_path) == before


def kill_devices() -> None:
    """The fork server is a child of this process, the devices are its children."""
    for child in psutil.Process().children():
        for device in child.children():
            device.kill()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: AccelerateSystem(offload="tape"), "system.offload=tape is unknown; choose one of"),
        (
            lambda: TransformersSystem(dtype="int4"),
            "system.dtype=int4 is not supported; choose one of float32, float16, bfloat16, or null",
        ),
        (lambda: TransformersSystem(threads=0), "system.threads=0 must be a whole number of at"),
        (lambda: TransformersSystem(attention="x"), "system.attention=x is unknown; choose one of"),
    ],
)
def test_bad_options_are_refused(make: Callable[[], object], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        make()


@pytest.mark.parametrize(
    ("options", "tolerance"), [({"attention": "eager"}, 1e-3), ({"dtype": "bfloat16"}, 0.5)]
)
def test_options_of_transformers_take_effect(
    checkpoints: dict[str, Path], tmp_path: Path, options: dict, tolerance: float
) -> None:
    """Logits differ from the defaults', and by no more than rounding explains."""
    folder = checkpoints["gqa"]
    logits = logits_of(TransformersSystem(**options), folder, tmp_path)
    plain = logits_of(TransformersSystem(), folder, tmp_path)
    difference = (logits[0] - plain[0]).abs().max()
    assert 0 < difference < tolerance


def test_threads_and_dtype_of_one_system_are_in_the_row(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    settings = settings_of(
        "model=hf",
        f"model.path={checkpoints['gqa']}",
        "system=transformers",
        "system.threads=3",
        "system.dtype=bfloat16",
        "testbed.threads_per_device=1",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=2",
        f"cache_dir={tmp_path}",
    )
    record = measure(prepare(settings))
    assert record.run.status == "ok"
    assert record.run.threads_per_device == 3
    assert record.devices[0].num_threads == 3
    assert record.run.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("system", "line"),
    [
        (TransformersSystem(), "Transformers"),
        (TransformersSystem(dtype="bfloat16", attention="eager"), "Transformers"),
        (TransformersSystem(name="mine"), "mine"),
        (AccelerateSystem(), "Accelerate"),
        (AccelerateSystem(offload="cpu"), "Accelerate cpu"),
        (AccelerateSystem(offload="auto"), "Accelerate auto"),
    ],
)
def test_names_in_figures(system: HuggingFaceSystem, line: str) -> None:
    assert f"{system.label} {system.variant}".strip() == line
