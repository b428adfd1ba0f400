"""GGUF files made from checkpoints: the same weights, and a tokenizer read alike."""

from __future__ import annotations

import http.client
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from baselines.llamacpp import LlamaCppSystem
from baselines.llamacpp_bindings import Options, server_params
from tests.helpers.llamacpp import NUM_NEW, generate, model_of
from tests.helpers.models_zoo import VARIANTS, WIDE, Variant, make_checkpoint, oracle, prompt_of
from tests.helpers.tokenizers import TEXTS, TOKENIZERS, save_tokenizer
from tpi_bench.contract.model import Rope
from tpi_bench.host.fork import in_helper
from tpi_bench.models.checkpoints import CHUNK_BYTES
from tpi_bench.models.demo_model import convert_gguf
from tpi_bench.models.gguf import vocabulary
from tpi_bench.models.gguf.names import (
    gguf_name,
    hugging_face_name,
    permute_heads,
    permuted_parts,
    undo_permutation,
)
from tpi_bench.models.gguf.rope import rope_factors
from tpi_bench.models.gguf.writer import gguf_file, gguf_tensors, write_gguf
from tpi_bench.models.hf_config import read_config


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
    config, path = model.config, gguf_file(model, cache_dir, "F32")
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
    path = gguf_file(model, cache_dir, weights)
    assert system.checkpoint_path(model, cache_dir) == path
    found = read_tensors(path)
    for tensor in gguf_tensors(model.config, weights):
        assert tensor.source is not None
        rows = model.checkpoint.read_rows(tensor.source, 0, tensor.shape[0]).numpy()
        if tensor.num_heads:
            rows = permute_heads(rows, tensor.num_heads)
        largest = np.abs(rows).max()
        assert np.abs(found[tensor.name] - rows).max() <= tolerance * largest
    entries = gguf.GGUFReader(path).tensors
    job: Any = SimpleNamespace(config=model.config, dtype="float32", weights="float32")
    read = sum(int(e.n_bytes) for e in entries if e.name != "token_embd.weight")
    assert system.token_weight_bytes(job) == read


@pytest.mark.parametrize("name", VARIANTS)
def test_names_there_and_back(checkpoints: dict[str, Path], name: str) -> None:
    sources = read_config(checkpoints[name]).tensor_shapes()
    found = {gguf_name(source): source for source in sources}
    assert len(found) == len(sources)
    for (own_name, part), source in found.items():
        assert hugging_face_name(own_name) == (source, part)


def test_rows_are_permuted_for_one_architecture() -> None:
    assert permuted_parts("llama", 9, 3) == {"attn_q": 9, "attn_k": 3}
    assert permuted_parts("qwen2", 9, 3) == {}
    rows = np.arange(24).reshape(12, 2)
    assert permute_heads(rows[:, 0], 2).tolist() == [0, 6, 2, 8, 4, 10, 12, 18, 14, 20, 16, 22]
    assert (undo_permutation(permute_heads(rows, 2), 2) == rows).all()


@pytest.mark.parametrize(
    ("head_dim", "factor", "context_length"), [(8, 8.0, 64), (128, 8.0, 8192), (64, 32.0, 8192)]
)
def test_rope_factors(head_dim: int, factor: float, context_length: int) -> None:
    """Of the random model, Llama 3.1 and Llama 3.2, to the last bit: by wavelengths, in fp64."""
    rope = Rope(
        theta=500000.0,
        rope_type="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context_length=context_length,
    )
    wavelengths = 2 * math.pi * rope.theta ** (np.arange(0, head_dim, 2) / head_dim)
    kept = np.clip((context_length / wavelengths - 1.0) / (4.0 - 1.0), 0, 1)
    expected = (1 / ((1 - kept) / factor + kept)).astype(np.float32)
    assert expected[0] == 1
    assert expected[-1] == factor
    assert rope_factors(rope, head_dim).tobytes() == expected.tobytes()


def test_rows_are_cut_between_heads(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was written in small pieces is the same."""
    model = model_of(checkpoints["biases"])
    paths = [tmp_path / name for name in ("whole.gguf", "pieces.gguf")]
    for path, chunk in zip(paths, (CHUNK_BYTES, 100), strict=True):
        monkeypatch.setattr("tpi_bench.models.gguf.writer.CHUNK_BYTES", chunk)
        write_gguf(path, model.checkpoint, model.folder, "F32")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.gguf")) == ["pieces.gguf", "whole.gguf"]


def test_the_file_is_kept(
    checkpoints: dict[str, Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(checkpoints["mha"])
    path = gguf_file(model, cache_dir, "F32")
    assert path.parent == cache_dir / "gguf"
    monkeypatch.setattr("tpi_bench.models.gguf.writer.in_helper", None)
    assert gguf_file(model, cache_dir, "F32") == path
    with pytest.raises(TypeError):
        gguf_file(model, cache_dir, "F16")


@pytest.fixture(params=TOKENIZERS)
def with_tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Tokenizer]:
    folder = make_checkpoint(tmp_path / "model", Variant(changes=WIDE))
    tokenizer = TOKENIZERS[request.param]()
    save_tokenizer(tokenizer, folder)
    return folder, tokenizer


_SERVERS: list[object] = []


def ask_llamacpp_to_tokenize(path: str, texts: list[str]) -> list[list[int]]:
    """Through the server's HTTP interface, the only one that tokenizes."""
    import xllamacpp

    params = server_params(Options(path=path, vocab=300, num_positions=2, num_threads=1))
    params.hostnames = ["127.0.0.1"]
    server = xllamacpp.Server(params)
    _SERVERS.append(server)  # to end it can hang, and this process ends without
    found = []
    for text in texts:
        connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
        connection.request("POST", "/tokenize", json.dumps({"content": text, "add_special": True}))
        found.append(json.loads(connection.getresponse().read())["tokens"])
    return found


def test_llamacpp_tokenizes_alike(with_tokenizer: tuple[Path, Tokenizer], cache_dir: Path) -> None:
    folder, tokenizer = with_tokenizer
    path = gguf_file(model_of(folder), cache_dir, "F32")
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
    assert vocabulary.pre_tokenizer_name(pre_tokenizer) == name
