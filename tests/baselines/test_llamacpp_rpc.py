"""llama.cpp over several devices by RPC: its tokens are Transformers', however it is divided.

What needs the build is skipped where it is not there (`make llamacpp_rpc`).
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from baselines import llamacpp_rpc_build
from baselines.llamacpp import LlamaCppSystem
from baselines.llamacpp_rpc import LlamaCppRpcSystem
from baselines.llamacpp_rpc_build import build, build_folder, is_built
from baselines.llamacpp_rpc_library import DividedModel, Options
from tests.helpers import llamacpp
from tests.helpers.command_line import report_of, run
from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.processes import child_pids, no_children_left
from tests.helpers.running import make_job, model_of, run_ok
from tpi_bench.contract.job import Job
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Request
from tpi_bench.measure.metrics import token_gaps_s
from tpi_bench.processes.launcher import run_job
from tpi_bench.report.folder import read_runs

NUM_NEW = 24
PROMPT = prompt_of(20)
needs_build = pytest.mark.skipif(
    not is_built(build_folder()), reason="needs llama.cpp with RPC (make llamacpp_rpc)"
)


def job_of(
    system: LlamaCppRpcSystem, folder: Path, cache_dir: Path, num_devices: int, **more: Any
) -> Job:
    request = more.pop("request", Request(prompt_ids=PROMPT, num_new_tokens=NUM_NEW))
    job = make_job(system, folder, cache_dir, num_devices=num_devices, request=request, **more)
    return replace(job, checkpoint_path=str(system.checkpoint_path(model_of(folder), cache_dir)))


@needs_build
@pytest.mark.parametrize(
    ("name", "proportions", "head"),
    [
        ("gqa", [1.0], "last"),
        ("tied", [1.0, 1.0], "last"),
        ("qwen2", [3.0, 2.0], "master"),
        ("tied", [1.0, 1.0, 3.0], "master"),
    ],
)
def test_tokens_and_logits_are_those_of_transformers(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    name: str,
    proportions: list[float],
    head: str,
) -> None:
    system, logits_path = LlamaCppRpcSystem(head=head), str(tmp_path / "logits.pt")
    count, before = len(proportions), child_pids()
    job = job_of(system, checkpoints[name], cache_dir, count, proportions=proportions)
    outcome = run_ok(replace(job, logits_path=logits_path))
    tokens, logits = oracle(checkpoints[name], PROMPT, NUM_NEW)
    assert outcome.generation is not None
    assert outcome.generation.token_ids == tokens
    assert outcome.generation.token_ns == sorted(outcome.generation.token_ns)
    assert outcome.generation.warmup_ttft_ns is not None
    assert (torch.load(logits_path) - logits).abs().max() < 1e-3
    assert len(outcome.devices) == count
    assert len(outcome.round_trips_ns) >= 2 * (count - 1)  # to each device's echo
    assert no_children_left(before)


@needs_build
@pytest.mark.parametrize("weights", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_narrow_weights_are_those_of_one_process(wide: Path, cache_dir: Path, weights: str) -> None:
    pytest.importorskip("xllamacpp")
    job = job_of(LlamaCppRpcSystem(weights=weights), wide, cache_dir, 2)
    path = LlamaCppRpcSystem(weights=weights).checkpoint_path(model_of(wide), cache_dir)
    found = run_ok(replace(job, checkpoint_path=str(path))).generation
    alone = llamacpp.generate(LlamaCppSystem(weights=weights), wide, cache_dir, num_new_tokens=8)
    assert found is not None
    assert found.token_ids[:4] == alone.token_ids[:4]
    assert len(found.token_ids) == NUM_NEW


@needs_build
def test_as_it_is_typed(checkpoints: dict[str, Path], tmp_path: Path, cache_dir: Path) -> None:
    done = run(
        "task=measure",
        "system=llamacpp_rpc",
        "model=hf",
        f"model.path={checkpoints['tied']}",
        "testbed.num_devices=2",
        "testbed.proportions=[3,2]",
        "testbed.threads_per_device=1",
        "network=none",
        "workload.prompt_tokens=20",
        "workload.num_new_tokens=8",
        "check=true",
        "report=json",
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1  # the servers' greetings are not in it
    report = report_of(done)
    assert report["tokens_equal"] is True
    assert report["max_logit_diff"] < 1e-3
    row = read_runs(Path(report["results"])).iloc[0]
    assert row.label == "llama.cpp RPC"
    assert row.is_library
    assert (row.num_devices, row.weights, row.clock) == (2, "float32", "wall")
    assert row.link_round_trip_s > 0
    assert row.peak_anon_bytes > 0
    assert math.isnan(row.compute_share)
    assert len(report["devices"]) == 2


@needs_build
def test_emulated_links_are_in_its_times(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """Through relays: each token asks every server at least once, there and back."""
    network, before = NetworkConfig(topology="switch", link_latency_ms=1.0), child_pids()
    job = job_of(LlamaCppRpcSystem(), checkpoints["tied"], cache_dir, 3, network=network)
    outcome = run_ok(job)
    assert outcome.generation is not None
    assert outcome.generation.token_ids == oracle(checkpoints["tied"], PROMPT, NUM_NEW)[0]
    trip_ns = 2 * network.one_way_ns
    assert trip_ns - 80_000 < min(outcome.round_trips_ns) < 1.05 * trip_ns
    assert token_gaps_s(outcome.generation)[0] > 2 * trip_ns / 1e9
    assert no_children_left(before)


@needs_build
def test_a_text_and_its_perplexity(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """It gives logits, so that a text can be read token by token."""
    request = Request(prompt_ids=PROMPT[:1], num_new_tokens=8, text_ids=PROMPT[1:9])
    job = job_of(LlamaCppRpcSystem(), checkpoints["tied"], cache_dir, 2, request=request)
    generation = run_ok(job).generation
    assert generation is not None
    assert generation.token_ids == list(PROMPT[1:9])
    assert len(generation.log_probs) == 8


@needs_build
def test_a_server_that_dies(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """The run ends with its rank, and nothing is left."""
    request = Request(prompt_ids=PROMPT, num_new_tokens=200)
    job = job_of(LlamaCppRpcSystem(), checkpoints["tied"], cache_dir, 2, request=request)

    killed: list[int] = []
    before = child_pids()

    def kill_server(token: int) -> None:
        for child in [] if killed else psutil.Process().children(recursive=True):
            if child.pid in before:
                continue
            if any(each.status == "LISTEN" for each in child.net_connections(kind="tcp")):
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    outcome = run_job(replace(job, stream=True), kill_server)
    assert len(killed) == 1
    assert outcome.status == "device_lost"
    assert (outcome.error or "").startswith("rank 1 was killed by signal 9 (SIGKILL)")
    assert no_children_left(before)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["system.library=/nowhere"], "which is not in /nowhere; run make llamacpp_rpc"),
        (["testbed=virtual"], "knows no virtual time; its stand-in there is system=pipeline"),
        (["system.window=2"], "there is no system.window with system=llamacpp_rpc"),
        (["system.head=first"], "system.head=first is unknown; choose one of last, master"),
        (["system.weights=Q5_K"], "system.weights=Q5_K is unknown; choose one of auto, F32"),
        (["testbed.num_devices=18"], "num_devices=18 is more than llama.cpp's RPC takes"),
        (["testbed.num_devices=6"], "testbed.num_devices=6 is more than the model's 5 layers"),
        (["testbed.proportions=[1,2,3]"], "must hold 2 positive numbers"),
    ],
)
def test_refused_in_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, cache_dir: Path, more: list[str], words: str
) -> None:
    done = run(
        "task=measure",
        "system=llamacpp_rpc",
        "model=hf",
        f"model.path={checkpoints['gqa']}",
        "workload.prompt_ids=[1]",
        "report=json",
        f"results_dir={tmp_path}",
        *more,
        cache_dir=cache_dir,
    )
    assert done.returncode == 2
    assert words in report_of(done)["error"]


OPTIONS = Options(
    path="m.gguf",
    servers=("127.0.0.1:1", "127.0.0.1:2"),
    layers=(3, 2, 1),
    vocab=300,
    num_positions=300,
    most_new=512,
    num_threads=2,
    mmap=True,
    flash_attention=False,
    cache_type="F16",
    head_on_master=False,
)


def params_of(options: Options) -> Any:
    """What llama.cpp would be given."""
    names = (
        "n_gpu_layers split_mode load_mode use_extra_bufts devices tensor_split "
        "tensor_buft_overrides"
    )
    given = SimpleNamespace(**dict.fromkeys(names.split()))
    llama = SimpleNamespace(
        llama_model_default_params=lambda: given,
        llama_max_devices=lambda: 4,
        LLAMA_LOAD_MODE_MMAP=1,
        LLAMA_LOAD_MODE_NONE=0,
    )
    model = DividedModel.__new__(DividedModel)
    model._llama, model._options = llama, options
    ggml = SimpleNamespace(ggml_backend_cpu_buffer_type=lambda: 7)
    model._library = SimpleNamespace(  # type: ignore[assignment]
        remote_device=lambda server: int(server.rpartition(":")[2]), ggml=ggml
    )
    params = model._model_params()
    params.kept = model
    return params


def test_layers_go_where_they_were_asked_to() -> None:
    """The master has the first three; of the rest, and the output behind them, each its own."""
    params = params_of(OPTIONS)
    assert params.n_gpu_layers == 2 + 1 + 1
    assert list(params.tensor_split) == [2, 2, 0, 0]
    devices = ctypes.cast(params.devices, ctypes.POINTER(ctypes.c_void_p))
    assert [devices[i] for i in range(3)] == [1, 2, None]
    assert params.tensor_buft_overrides is None
    assert (params.load_mode, params.use_extra_bufts) == (1, False)


def test_the_head_stays_with_the_master() -> None:
    params = params_of(replace(OPTIONS, head_on_master=True, mmap=False))
    assert params.tensor_buft_overrides is not None
    assert (params.load_mode, params.use_extra_bufts) == (0, True)


def test_one_device_has_no_servers() -> None:
    params = params_of(replace(OPTIONS, servers=(), layers=(6,)))
    assert params.n_gpu_layers == 0
    assert params.devices is None


@pytest.mark.parametrize(("head", "last"), [("last", 300), ("master", 72)])
def test_what_a_token_sends(
    checkpoints: dict[str, Path], cache_dir: Path, head: str, last: int
) -> None:
    system = LlamaCppRpcSystem(head=head)
    request = Request(prompt_ids=PROMPT, num_new_tokens=2)
    job = make_job(system, checkpoints["tied"], cache_dir, num_devices=3, request=request)
    assert job.blocks == []
    found = system.traffic(job)
    assert found.latencies == 4
    assert found.serial_bytes == found.all_bytes == (3 * 72 + last) * 4
    alone = make_job(system, checkpoints["tied"], cache_dir, num_devices=1, request=request)
    assert system.traffic(alone).latencies == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "llama.cpp RPC"),
        ({"weights": "Q8_0"}, "llama.cpp RPC Q8_0"),
        ({"head": "master"}, "llama.cpp RPC head on master"),
        ({"name": "mine"}, "mine"),
    ],
)
def test_names_in_figures(settings: dict[str, Any], line: str) -> None:
    system = LlamaCppRpcSystem(**settings)
    assert f"{system.label} {system.variant}".strip() == line


def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, status: int) -> None:
    """A Python that, instead of pip, says it compiles two files, and leaves a library."""
    script = tmp_path / "python"
    lines = [
        "#!/bin/sh",
        'echo "[1/2] Building a.cpp $CMAKE_ARGS"; echo "[2/2] Building b.cpp"',
        'for last; do [ "$before" = --target ] && target=$last; before=$last; done',
        'mkdir -p "$target/llama_cpp/lib"; touch "$target/llama_cpp/lib/libggml-rpc.so"',
        f"exit {status}",
    ]
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "build"
    fake_pip(tmp_path, monkeypatch, status=0)
    build(folder)
    assert is_built(folder)
    monkeypatch.setattr(sys, "executable", "/nothing/runs")
    build(folder)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["build"]


def test_a_build_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "build"
    fake_pip(tmp_path, monkeypatch, status=1)
    with pytest.raises(RuntimeError, match=r"could not be built; the end of it:\n\[1/2\] Building"):
        build(folder)
    assert not folder.exists()
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]


def test_how_far_a_build_is() -> None:
    last: deque[str] = deque(maxlen=2)
    lines = ["Collecting", "[3/70] Building CXX", "warning", "[70/70] Linking"]
    kept = llamacpp_rpc_build._kept(lines, last)
    assert list(llamacpp_rpc_build._steps(kept)) == [(3, 70), (70, 70)]
    assert list(last) == lines[-2:]
