"""The real llama.cpp: its tokens are those of Transformers, and its files hold the same weights."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from baselines import llamacpp_bindings
from baselines.llamacpp import LlamaCppSystem
from baselines.llamacpp_bindings import Options, server_params
from tests.helpers.command_line import run
from tests.helpers.llamacpp import NUM_NEW, generate, model_of
from tests.helpers.local_runtime import LocalRuntime
from tests.helpers.models_zoo import VARIANTS, oracle, prompt_of
from tests.helpers.running import make_job, run_ok
from tpi_bench import load
from tpi_bench.contract.job import Output
from tpi_bench.contract.model import Model, ModelConfig
from tpi_bench.contract.request import Request, Sampling
from tpi_bench.contract.speculation import Speculation
from tpi_bench.models.checkpoints import FolderCheckpoint
from tpi_bench.models.gguf.writer import write_gguf
from tpi_bench.models.hf_config import read_config
from tpi_bench.models.synthetic import SyntheticCheckpoint

pytest.importorskip("xllamacpp")


@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_are_those_of_transformers(
    checkpoints: dict[str, Path], cache_dir: Path, name: str
) -> None:
    for length in (1, 200):
        prompt = prompt_of(length)
        found = generate(LlamaCppSystem(), checkpoints[name], cache_dir, prompt_ids=prompt)
        assert found.token_ids == oracle(checkpoints[name], prompt, NUM_NEW)[0]
        assert found.token_ns == sorted(found.token_ns)
        assert found.warmup_ttft_ns is not None


def test_it_drafts_by_itself(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """Its own lookup: the tokens are plain greedy's, and each pass has its own and those right."""
    prompt, asked = (5, 6, 7) * 6, Speculation(kind="lookup", draft_tokens=3)
    folder = checkpoints["qwen2"]  # whose answer to this repeats some of it
    given: dict[str, Any] = {"prompt_ids": prompt, "speculation": asked}
    found = generate(LlamaCppSystem(), folder, cache_dir, **given)
    assert found.token_ids == oracle(folder, prompt, NUM_NEW)[0]
    assert len(found.proposed) + sum(found.accepted) == NUM_NEW - 1
    assert 0 < sum(found.accepted) < sum(found.proposed)
    pairs = zip(found.accepted, found.proposed, strict=True)
    assert all(right <= drafted <= 3 for right, drafted in pairs)
    assert len(set(found.token_ns)) == len(found.proposed) + 1


@pytest.mark.parametrize(
    ("system", "drafter", "share"),
    [("llamacpp", "same", 1.0), ("llamacpp", "mha", 0.0), ("transformers", "same", 1.0)],
)
def test_another_model_drafts(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    drafter: str,
    share: float,
    system: str,
) -> None:
    """Itself, which is always right, or one that knows nothing of it: the tokens are the same."""
    done = run(
        *("task=measure", f"system={system}", "check=true", "report=json", "model=hf"),
        f"model.path={checkpoints['gqa']}",
        *("workload.prompt_ids=[5,6,7,8]", f"workload.num_new_tokens={NUM_NEW}"),
        *("workload.speculation=draft", "workload.draft_tokens=3"),
        f"workload.draft_model={checkpoints.get(drafter, drafter)}",
        "workload.draft_weights=float32",
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["tokens_equal"]
    (row,) = load(next(tmp_path.rglob("runs.parquet")).parent).rows
    # Transformers has some checked with the prompt, whose pass gives the first token.
    with_prompt = 3 * share if system == "transformers" else 0
    assert row.num_accepted == NUM_NEW - 1 - row.num_passes - with_prompt
    assert row.acceptance == pytest.approx(share, abs=0.3 * (1 - share))
    assert row.num_proposed > 0
    assert "float32" in row.draft_model


def test_a_draft_has_the_weights_that_it_is_asked_for(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    system = LlamaCppSystem(weights="Q8_0")
    model = model_of(checkpoints["gqa"])
    path = system.draft_path(model, cache_dir)
    assert path is not None
    assert path == LlamaCppSystem().checkpoint_path(model, cache_dir)
    params = server_params(
        Options(
            path="",
            vocab=300,
            num_positions=300,
            num_threads=2,
            draft_tokens=3,
            draft_path=str(path),
        )
    )
    draft = params.speculative.draft
    assert (draft.mparams.path, draft.n_max, draft.cpuparams.n_threads) == (str(path), 3, 2)


def test_which_tokens_came_in_one_pass() -> None:
    """By llama.cpp's count of what it has drafted, and of what of it was right."""
    asked = Speculation(kind="lookup", draft_tokens=4)
    request = Request(prompt_ids=(1,), num_new_tokens=20, speculation=asked)
    stream = llamacpp_bindings._Stream(LocalRuntime(0, {(0, 0): None}), request, 20, Output())
    passes = [(0, 0)] + [(4, 4)] * 5 + [(8, 8)] * 5 + [(12, 9)] * 2 + [(12, 9)] + [(16, 9)]
    for drafted, right in passes:
        counted = {"draft_n": drafted, "draft_n_accepted": right} if drafted else {}
        message = {"__verbose": {"tokens": [7], "timings": counted}}
        assert not stream.take(json.dumps(message))
    stream.check(0)
    assert stream.result.proposed == [4, 4, 4, 0, 4]
    assert stream.result.accepted == [4, 4, 1, 0, 0]
    assert len(set(stream.result.token_ns)) == 6


def test_the_whole_context_can_be_used(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    prompt = prompt_of(512 - NUM_NEW)
    found = generate(LlamaCppSystem(), checkpoints["tied"], cache_dir, prompt_ids=prompt)
    assert found.token_ids == oracle(checkpoints["tied"], prompt, NUM_NEW)[0]


@pytest.mark.parametrize(
    "system",
    [
        LlamaCppSystem(mmap=False),
        LlamaCppSystem(flash_attention=True),
        LlamaCppSystem(kv_cache="F16"),
        LlamaCppSystem(weights="F16"),
        LlamaCppSystem(weights="BF16"),
        LlamaCppSystem(weights="Q8_0"),
        LlamaCppSystem(weights="Q4_0"),
        LlamaCppSystem(weights="Q4_0", mmap=False),
    ],
    ids=str,
)
def test_every_setting_runs(wide: Path, cache_dir: Path, system: LlamaCppSystem) -> None:
    found = generate(system, wide, cache_dir, num_new_tokens=16).token_ids
    assert len(found) == 16
    if system.weights in ("auto", "F16"):
        assert found[:4] == oracle(wide, prompt_of(20), NUM_NEW)[0][:4]


def test_sixteen_bit_weights_need_no_blocks(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    for weights in ("F16", "BF16"):
        system = LlamaCppSystem(weights=weights)
        found = generate(system, checkpoints["gqa"], cache_dir, num_new_tokens=8)
        assert len(found.token_ids) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "Q5_K"}, "system.weights=Q5_K is not known; choose one of auto, F32, F16"),
        ({"kv_cache": "Q8_0"}, "system.kv_cache=Q8_0 is not known; choose one of auto, F32, F16"),
        ({"mmap": "maybe"}, "system.mmap=maybe is not known; choose one of True, False"),
    ],
)
def test_unknown_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaCppSystem(**settings)


@pytest.mark.parametrize(
    ("changes", "weights", "message"),
    [
        ({}, "Q8_0", "rows of 72; choose F32, F16 or BF16"),
        ({"model_type": "qwen2", "head_dim": 16}, "F32", "9 heads of 16 and a hidden size of 72"),
        ({"model_type": "qwen2", "rope": "llama3"}, "F32", "no llama3 RoPE scaling for Qwen2"),
        ({"share_layers": True}, "F32", "model.share_layers=true works only with"),
    ],
)
def test_what_it_cannot_run(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    changes: dict[str, Any],
    weights: str,
    message: str,
) -> None:
    config: ModelConfig = read_config(checkpoints["gqa"])
    changes = dict(changes)
    share_layers = changes.pop("share_layers", False)
    if "rope" in changes:
        changes["rope"] = replace(config.rope, rope_type="llama3")
    config = replace(config, **changes)
    checkpoint = SyntheticCheckpoint(config, seed=0, share_layers=share_layers)
    model = Model(
        name="tiny", checkpoint=checkpoint, dtype="float32", weights="float32", folder=None
    )
    with pytest.raises(ValueError, match=message):
        LlamaCppSystem(weights=weights).checkpoint_path(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_binding(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed; run pip install -e '\.\[llamacpp\]'"):
        LlamaCppSystem().checkpoint_path(model_of(checkpoints["gqa"]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_seed_repeats(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    def sample(seed: int) -> list[int]:
        sampling = Sampling(temperature=0.9, top_k=50, top_p=0.95, seed=seed)
        system, folder = LlamaCppSystem(), checkpoints["gqa"]
        return generate(system, folder, cache_dir, sampling=sampling).token_ids

    first = sample(3)
    assert sample(3) == first
    assert sample((1 << 62) + 1) != first


def test_the_end_of_sequence(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    expected = oracle(checkpoints["gqa"], prompt_of(20), NUM_NEW)[0]
    end = expected[9]
    stop = expected.index(end) + 1
    found = generate(LlamaCppSystem(), checkpoints["gqa"], cache_dir, eos_ids=(end,))
    assert found.token_ids == expected[:stop]


@pytest.mark.parametrize("stops", [True, False])
def test_what_llamacpp_takes_for_an_end(
    checkpoints: dict[str, Path], tmp_path: Path, stops: bool
) -> None:
    """It ends there whatever it is asked; then it is asked to go on."""
    folder = checkpoints["gqa"]
    expected = oracle(folder, prompt_of(20), NUM_NEW)[0]
    end = expected[9]
    config = replace(read_config(folder), eos_ids=(end,))
    path = tmp_path / "with_end.gguf"
    write_gguf(path, FolderCheckpoint(folder, config), folder, "F32")
    request = Request(
        prompt_ids=prompt_of(20), num_new_tokens=NUM_NEW, eos_ids=(end,) if stops else ()
    )
    job = make_job(LlamaCppSystem(), folder, tmp_path, num_devices=1, request=request)
    generation = run_ok(replace(job, checkpoint_path=str(path))).generation
    assert generation is not None
    assert generation.token_ids == (expected[: expected.index(end) + 1] if stops else expected)


def test_the_time_limit(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    found = generate(
        LlamaCppSystem(), checkpoints["gqa"], cache_dir, max_decode_ns=1, min_new_tokens=4
    )
    assert len(found.token_ids) == 4


def test_a_prompt_in_pieces(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """llama.cpp computes as many positions of it at once as the workload says."""
    folder, prompt = checkpoints["gqa"], prompt_of(200)
    system, request = LlamaCppSystem(), {"prompt_ids": prompt, "prefill_chunk": 7}
    options = Options(path="", vocab=300, num_positions=300, num_threads=1, prefill_chunk=7)
    assert server_params(options).n_ubatch == 7
    found = generate(system, folder, cache_dir, **request)
    assert found.token_ids == oracle(folder, prompt, NUM_NEW)[0]


def test_check_without_logits(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    done = run(
        "task=measure",
        "system=llamacpp",
        "check=true",
        "report=json",
        "model=hf",
        f"model.path={checkpoints['tied']}",
        "workload.prompt_ids=[1,2,3]",
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["tokens_equal"]
    assert report["max_logit_diff"] is None
    assert report["devices"][0]["peak_file_bytes"] > 0


@pytest.fixture
def fake_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """llama-cpp-python as far as it is used; its logits prefer the token after the last."""
    calls: list[Any] = []

    class Llama:
        def __init__(self, **settings: Any) -> None:
            calls.append(settings)
            self.ctx = self
            self.last = 0

        def reset(self) -> None:
            calls.append("reset")

        def eval(self, tokens: list[int]) -> None:
            calls.append(list(tokens))
            self.last = tokens[-1]

    def llama_get_logits_ith(context: Llama, i: int) -> Any:
        assert i == -1
        logits = np.zeros(300, dtype=np.float32)
        logits[(context.last + 1) % 300] = 1
        return ctypes.cast((ctypes.c_float * 300)(*logits), ctypes.POINTER(ctypes.c_float))

    module = ModuleType("llama_cpp")
    module.__dict__.update(
        Llama=Llama, llama_get_logits_ith=llama_get_logits_ith, GGML_TYPE_F32=0, GGML_TYPE_F16=1
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    monkeypatch.setattr(llamacpp_bindings, "installed_binding", lambda: "llama_cpp")
    return calls


def test_llama_cpp_python(
    checkpoints: dict[str, Path], cache_dir: Path, fake_llama_cpp: list[Any]
) -> None:
    request = Request(prompt_ids=(5, 6), num_new_tokens=3)
    system = LlamaCppSystem(mmap=False)
    job = make_job(system, checkpoints["gqa"], cache_dir, num_devices=1, request=request)
    tokens: list[int] = []
    logits: list[torch.Tensor] = []
    output = Output(on_token=tokens.append, on_logits=logits.append)
    runtime: Any = LocalRuntime(0, {(0, 0): None})
    found = system.run_device(runtime, job, output)
    assert found is not None
    assert found.token_ids == tokens == [7, 8, 9]
    assert [int(row.argmax()) for row in logits] == tokens
    assert found.warmup_ttft_ns is not None
    settings, *calls = fake_llama_cpp
    assert calls == ["reset", [5, 6], "reset", [5, 6], [7], [8]]
    assert settings["n_ctx"] == 256
    assert settings["type_k"] == 0
    assert settings["use_mmap"] is False


@pytest.mark.parametrize(
    ("settings", "line"),
    [({}, "llama.cpp"), ({"weights": "Q8_0"}, "llama.cpp Q8_0"), ({"name": "mine"}, "mine")],
)
def test_names_in_figures(settings: dict[str, Any], line: str) -> None:
    system = LlamaCppSystem(**settings)
    assert f"{system.label} {system.variant}".strip() == line
