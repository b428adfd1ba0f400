"""The real llama.cpp: its tokens are those of Transformers, and its files hold the same weights."""

from __future__ import annotations

import ctypes
import http.client
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.quants import dequantize
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from baselines import llamacpp
from baselines.llamacpp import LlamaCppSystem
from tests.local_runtime import LocalRuntime
from tests.models_zoo import VARIANTS, Variant, make_checkpoint, oracle, prompt_of
from tests.running import make_job, run_ok
from tests.test_app import run
from tpi_bench import gguf_vocab
from tpi_bench.checkpoints import CHUNK_BYTES, FolderCheckpoint, SyntheticCheckpoint
from tpi_bench.gguf_export import gguf_tensors, permute_heads, write_gguf
from tpi_bench.gguf_import import convert_gguf, hugging_face_name, undo_permutation
from tpi_bench.helper import in_helper
from tpi_bench.job import Job, Output
from tpi_bench.models import ModelConfig, read_config
from tpi_bench.sources import Model
from tpi_bench.workload import Generation, Request, Sampling

pytest.importorskip("xllamacpp")

NUM_NEW = 64
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2} | {
    "intermediate_size": 192
}
TEXTS = [
    "What is the capital of France?",
    "  two spaces, 12345 digits\n\nand\tlines; it's déjà vu in 東京 🙂!",
    "x",
]


def model_of(folder: Path, dtype: str = "float32") -> Model:
    checkpoint = FolderCheckpoint(folder, read_config(folder))
    return Model(name="tiny", checkpoint=checkpoint, dtype=dtype, folder=folder)


def job_of(
    system: LlamaCppSystem, folder: Path, cache_dir: Path, request: Request, **extra: Any
) -> Job:
    files = system.files(model_of(folder), cache_dir)
    job = make_job(system, folder, cache_dir, num_devices=1, request=request, **extra)
    return replace(job, files=str(files))


def generate(system: LlamaCppSystem, folder: Path, cache_dir: Path, **request: Any) -> Generation:
    asked = Request(**({"prompt_ids": prompt_of(20), "num_new_tokens": NUM_NEW} | request))
    found = run_ok(job_of(system, folder, cache_dir, asked)).generation
    assert found is not None
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole quantised blocks."""
    return make_checkpoint(tmp_path_factory.mktemp("wide"), Variant(changes=WIDE))


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


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """By GGUF name, dequantised."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = values.reshape([int(n) for n in reversed(tensor.shape)])
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_the_file_holds_the_checkpoint(
    checkpoints: dict[str, Path], cache_dir: Path, name: str
) -> None:
    model = model_of(checkpoints[name])
    config, path = model.config, LlamaCppSystem().files(model, cache_dir)
    assert path is not None
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    found = read_tensors(path)
    factors = found.pop("rope_freqs.weight", None)
    assert (factors is not None) == (config.rope.rope_type == "llama3")
    assert len(found) == len(config.tensor_shapes())
    for own_name, values in found.items():
        source, part = hugging_face_name(own_name)
        if part in heads and config.model_type != "qwen2":
            values = undo_permutation(values, heads[part])
        rows = model.checkpoint.read_rows(source, 0, values.shape[0]).float().numpy()
        np.testing.assert_array_equal(values, rows, err_msg=own_name)


@pytest.mark.parametrize(
    ("weights", "tolerance"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_0", 0.15)]
)
def test_quantised_weights_are_near(
    wide: Path, cache_dir: Path, weights: str, tolerance: float
) -> None:
    model, system = model_of(wide), LlamaCppSystem(weights=weights)
    path = system.files(model, cache_dir)
    assert path is not None
    found = read_tensors(path)
    for tensor in gguf_tensors(model.config, weights):
        assert tensor.source is not None
        rows = model.checkpoint.read_rows(tensor.source, 0, tensor.shape[0]).numpy()
        if tensor.num_heads:
            rows = permute_heads(rows, tensor.num_heads)
        largest = np.abs(rows).max()
        assert np.abs(found[tensor.name] - rows).max() <= tolerance * largest
    entries = gguf.GGUFReader(path).tensors
    job: Any = SimpleNamespace(config=model.config, dtype="float32")
    read = sum(int(e.n_bytes) for e in entries if e.name != "token_embd.weight")
    assert system.token_weight_bytes(job) == read


def test_rows_are_cut_between_heads(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was written in small pieces is the same."""
    model = model_of(checkpoints["biases"])
    paths = [tmp_path / name for name in ("whole.gguf", "pieces.gguf")]
    for path, chunk in zip(paths, (CHUNK_BYTES, 100), strict=True):
        monkeypatch.setattr("tpi_bench.gguf_export.CHUNK_BYTES", chunk)
        write_gguf(path, model.checkpoint, model.folder, "F32")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.gguf")) == ["pieces.gguf", "whole.gguf"]


def test_the_file_is_kept(
    checkpoints: dict[str, Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(checkpoints["mha"])
    path = LlamaCppSystem().files(model, cache_dir)
    assert path is not None
    assert path.parent == cache_dir / "gguf"
    monkeypatch.setattr("tpi_bench.helper.in_helper", None)
    assert LlamaCppSystem().files(model, cache_dir) == path
    with pytest.raises(TypeError):
        LlamaCppSystem(weights="F16").files(model, cache_dir)


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
    model = Model(name="tiny", checkpoint=checkpoint, dtype="float32", folder=None)
    with pytest.raises(ValueError, match=message):
        LlamaCppSystem(weights=weights).files(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_binding(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed; run pip install -e '\.\[llamacpp\]'"):
        LlamaCppSystem().files(model_of(checkpoints["gqa"]), tmp_path)
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
    generation = run_ok(replace(job, files=str(path))).generation
    assert generation is not None
    assert generation.token_ids == (expected[: expected.index(end) + 1] if stops else expected)


def test_the_time_limit(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    found = generate(
        LlamaCppSystem(), checkpoints["gqa"], cache_dir, max_decode_ns=1, min_new_tokens=4
    )
    assert len(found.token_ids) == 4


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
    monkeypatch.setattr(llamacpp, "_installed_binding", lambda: "llama_cpp")
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


def byte_level(pre_tokenizer: Any = None) -> Tokenizer:
    """A small byte-level BPE, with an unused id and a special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=298, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """BPE over characters with byte fallback, as of Llama 2; the space comes as a character."""
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False, limit_alphabet=25)
    small = Tokenizer(models.BPE())
    small.normalizer = normalizers.Replace(" ", "▁")
    small.train_from_iterator(["▁" + text for text in TEXTS[:1]] * 3, trainer)
    trained = json.loads(small.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>"]
    texts = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [text for text, _ in sorted(trained["vocab"].items(), key=lambda item: item[1])]
    merges = [tuple(rule) for rule in trained["merges"]]
    vocab = {text: i for i, text in enumerate(texts[:300])}
    merges = [rule for rule in merges if {*rule, "".join(rule)} <= vocab.keys()]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


TOKENIZERS = {
    "gpt-2": byte_level,
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    ),
    "sentencepiece": sentencepiece_like,
}


@pytest.fixture(params=TOKENIZERS)
def with_tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Tokenizer]:
    folder = make_checkpoint(tmp_path / "model", Variant(changes=WIDE))
    tokenizer = TOKENIZERS[request.param]()
    end = "</s>" if request.param == "sentencepiece" else "<|end|>"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end).save_pretrained(
        folder
    )
    return folder, tokenizer


def ask_llamacpp_to_tokenize(path: str, texts: list[str]) -> list[list[int]]:
    """Through the server's HTTP interface, the only one that tokenizes."""
    import xllamacpp

    request = Request(prompt_ids=(1,), num_new_tokens=1)
    job: Any = SimpleNamespace(files=path, request=request, threads_per_device=1, dtype="float32")
    params = llamacpp._server_params(LlamaCppSystem(), job)
    params.hostnames = ["127.0.0.1"]
    server = xllamacpp.Server(params)
    found = []
    for text in texts:
        connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
        connection.request("POST", "/tokenize", json.dumps({"content": text, "add_special": True}))
        found.append(json.loads(connection.getresponse().read())["tokens"])
    return found


def test_llamacpp_tokenizes_alike(with_tokenizer: tuple[Path, Tokenizer], cache_dir: Path) -> None:
    folder, tokenizer = with_tokenizer
    path = LlamaCppSystem().files(model_of(folder), cache_dir)
    found = in_helper(ask_llamacpp_to_tokenize, str(path), TEXTS)
    assert found == [tokenizer.encode(text).ids for text in TEXTS]


def test_tokens_that_are_no_characters_arrive_too(
    with_tokenizer: tuple[Path, Tokenizer], cache_dir: Path
) -> None:
    """A random model makes broken characters all the time, and ends of sequence."""
    folder, _ = with_tokenizer
    expected = oracle(folder, prompt_of(20), NUM_NEW)[0]
    found = generate(LlamaCppSystem(), folder, cache_dir)
    assert found.token_ids == expected
    assert len(set(found.token_ns)) == NUM_NEW


def test_to_gguf_and_back(with_tokenizer: tuple[Path, Tokenizer], tmp_path: Path) -> None:
    folder, _ = with_tokenizer
    path = tmp_path / "model.gguf"
    model = model_of(folder)
    write_gguf(path, model.checkpoint, folder, "F32")
    back = tmp_path / "back"
    back.mkdir()
    convert_gguf(path, back)
    found: dict[str, np.ndarray] = {}
    for file in back.glob("*.safetensors"):
        found |= load_file(file)
    shapes = model.config.tensor_shapes()
    assert found.keys() == shapes.keys()
    for name, shape in shapes.items():
        rows = model.checkpoint.read_rows(name, 0, shape[0]).numpy()
        np.testing.assert_array_equal(found[name], rows)
    again = read_config(back)
    assert again.rms_eps == np.float32(model.config.rms_eps)
    same = {"eos_ids": (), "rms_eps": 0.0}
    assert replace(again, **same) == replace(model.config, **same)


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (None, "default"),
        ({"type": "Metaspace"}, "default"),
        ({"type": "ByteLevel", "use_regex": True}, "gpt-2"),
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "llama-bpe",
        ),
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "qwen2",
        ),
        (r"\w+", "default"),
    ],
)
def test_names_of_pre_tokenizers(pre_tokenizer: Any, name: str) -> None:
    if isinstance(pre_tokenizer, str):
        split = {"type": "Split", "pattern": {"Regex": pre_tokenizer}}
        steps = [split, {"type": "ByteLevel", "use_regex": False}]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}
    assert gguf_vocab.pre_tokenizer_name(pre_tokenizer) == name
