"""GGUF files as models: rows straight from the file, quantised ones as they are, bit for bit."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file

from baselines.pipeline import PipelineSystem
from tests.helpers.exact import check
from tests.helpers.gguf_files import random_gguf
from tests.helpers.running import make_job, model_of
from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.model import Model, ModelConfig, Rope
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.models.block_layout import Slice, block_tensors, planned_blocks
from tpi_bench.models.gguf import reader
from tpi_bench.models.gguf.names import gguf_name, undo_permutation
from tpi_bench.models.gguf.rope import rope_factors, rope_of_factors
from tpi_bench.models.gguf.writer import gguf_file, write_gguf
from tpi_bench.models.hf_config import read_config
from tpi_bench.models.hf_folder import held_folder, hugging_face_folder
from tpi_bench.models.quantised import GGUF_TYPES, WEIGHTS_OF_TYPES
from tpi_bench.models.sources import HuggingFaceModel

CONFIG = ModelConfig(
    num_layers=2,
    hidden=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate=256,
    vocab=300,
    context_length=512,
)
# As llama-quantize leaves them in a file of 4-bit weights, and stranger.
MIXED = {
    "lm_head.weight": "Q6_K",
    "layers.0.mlp.down_proj.weight": "Q4_1",
    "layers.1.self_attn.v_proj.weight": "Q8_0",
    "layers.1.mlp.up_proj.weight": "Q5_0",
    "layers.1.self_attn.o_proj.weight": "F16",
}


def load(path: Path, cache_dir: Path, **types: str) -> Model:
    return HuggingFaceModel(path=str(path), **types).load(cache_dir)


@pytest.fixture(autouse=True)
def no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are described in this process, which has loaded the libraries already."""
    monkeypatch.setattr(reader, "in_helper", lambda fn, *given: fn(*given))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each type, and one of many."""
    root = tmp_path_factory.mktemp("gguf")
    kinds = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q6_K"]
    made = {kind: random_gguf(root / f"{kind}.gguf", CONFIG, {}, kind) for kind in kinds}
    return made | {"mixed": random_gguf(root / "mixed.gguf", CONFIG, MIXED, "Q4_0")}


@functools.lru_cache(maxsize=200)
def rows_in_file(path: Path, name: str, config: ModelConfig) -> tuple[np.ndarray, str]:
    """A whole tensor as it is packed in the file, in a checkpoint's order of rows."""
    own, part = gguf_name(name)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == own)
    rows = np.array(tensor.data).view(np.uint8).reshape(int(tensor.shape[-1]), -1)
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(part)
    return (rows if heads is None else undo_permutation(rows, heads)), tensor.tensor_type.name


def values_in_file(path: Path, name: str, config: ModelConfig) -> np.ndarray:
    rows, kind = rows_in_file(path, name, config)
    return dequantize(rows, gguf.GGMLQuantizationType[kind])


def block_values(block: BlockFile, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A matrix of a block file, dequantised here, and its scales."""
    tensors = load_file(block.path)
    numbers, scales = tensors[name], tensors.get(f"{name}.scales")
    if scales is None:
        return numbers.float().numpy(), None
    if numbers.dtype == torch.uint8:
        groups = numbers.view(len(numbers), -1, 16)
        numbers = torch.cat((groups & 15, groups >> 4), dim=-1).to(torch.int16) - 8
    wide = numbers.view(*scales.shape, 32).float() * scales[..., None].float()
    return wide.view(len(numbers), -1).numpy(), scales.numpy()


def blocks_of(model: Model, cache_dir: Path, proportions: list[float]) -> list[list[BlockFile]]:
    request = Request(prompt_ids=(1,), num_new_tokens=1)
    job = make_job(
        TpiSystem(),
        model.checkpoint,
        cache_dir,
        num_devices=len(proportions),
        request=request,
        proportions=proportions,
        weights=model.weights,
        dtype=model.dtype,
    )
    return job.blocks


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("proportions", [[1.0], [3.0, 1.0, 2.0]])
def test_block_files_hold_the_numbers_of_the_file(
    files: dict[str, Path], cache_dir: Path, kind: str, proportions: list[float]
) -> None:
    """Numbers and scales that quantising again would change: of cut columns and heads too."""
    model = load(files[kind], cache_dir)
    assert (model.weights, model.dtype) == (WEIGHTS_OF_TYPES[kind], "float32")
    plan = TpiSystem().plan(model.config, Site(proportions=proportions, weights="q8"))
    number = gguf.GGMLQuantizationType[kind]
    again_same = []
    for shards, blocks in zip(plan.shards, blocks_of(model, cache_dir, proportions), strict=True):
        for shard, block in zip(shards, blocks, strict=True):
            for name, slices in block_tensors(model.config, shard).items():
                if name == "norm":
                    continue
                expected = np.concatenate([cut(files[kind], piece) for piece in slices])
                rows = np.concatenate([cut_scales(files[kind], piece) for piece in slices])
                values, scales = block_values(block, name)
                assert values.tobytes() == expected.tobytes()
                assert scales is not None
                assert scales.tobytes() == rows.tobytes()
                again = dequantize(quantize(expected, number), number)
                again_same.append(np.array_equal(again, expected))
    assert not any(again_same)


def cut(path: Path, piece: Slice) -> np.ndarray:
    cols = slice(*(piece.cols or (None,)))
    return values_in_file(path, piece.name, CONFIG)[slice(*piece.rows), cols]


def cut_scales(path: Path, piece: Slice) -> np.ndarray:
    rows, kind = rows_in_file(path, piece.name, CONFIG)
    _, group_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    scales = rows.reshape(len(rows), -1, group_bytes)[:, :, :2].copy().view(np.float16)[:, :, 0]
    groups = None if piece.cols is None else (piece.cols[0] // 32, piece.cols[1] // 32)
    return scales[slice(*piece.rows), slice(*(groups or (None,)))]


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("F32", ("float32", "float32")),
        ("F16", ("float16", "float16")),
        ("BF16", ("bfloat16", "bfloat16")),
        ("Q8_0", ("q8", "float32")),
        ("Q4_0", ("q4", "float32")),
        ("Q4_1", ("q8", "float32")),
        ("Q6_K", ("q8", "float32")),
        ("mixed", ("q4", "float32")),
    ],
)
def test_what_auto_takes(
    files: dict[str, Path], cache_dir: Path, kind: str, types: tuple[str, str]
) -> None:
    model = load(files[kind], cache_dir)
    assert (model.weights, model.dtype) == types
    narrow = load(files[kind], cache_dir, dtype="bfloat16")
    assert narrow.weights == (types[0] if types[0] in ("q8", "q4") else "bfloat16")
    asked = load(files[kind], cache_dir, weights="float32")
    assert (asked.weights, asked.dtype) == ("float32", "float32")
    assert asked.checkpoint.identity == model.checkpoint.identity


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q6_K", "mixed"])
def test_any_rows_are_read_from_the_file(
    files: dict[str, Path], cache_dir: Path, kind: str
) -> None:
    checkpoint = load(files[kind], cache_dir).checkpoint
    for name, shape in CONFIG.tensor_shapes().items():
        expected = values_in_file(files[kind], name, CONFIG).reshape(shape)
        for start, stop in ((0, shape[0]), (3, 70), (64, 128)):
            rows = checkpoint.read_rows(name, start, stop)
            assert rows.float().numpy().tobytes() == expected[start:stop].tobytes(), name
    norm = checkpoint.read_rows("model.norm.weight", 0, 256)
    assert norm.dtype == torch.float32


def test_narrow_whole_numbers_are_8_bit_ones_too(files: dict[str, Path], cache_dir: Path) -> None:
    """Nothing is lost when 4 and 5 bits with a scale are held in 8."""
    for kind in ("Q4_0", "Q5_0"):
        model = load(files[kind], cache_dir, weights="q8")
        blocks = blocks_of(model, cache_dir, [1.0])[0]
        down = next(block for block in blocks if block.key == "ffn_1")
        expected = values_in_file(files[kind], "model.layers.1.mlp.down_proj.weight", CONFIG)
        np.testing.assert_array_equal(block_values(down, "down")[0], expected)


def test_matrices_of_other_types_keep_what_they_have(
    files: dict[str, Path], cache_dir: Path
) -> None:
    """Each matrix of a mixed file is held in its own type, or in q8 if only llama.cpp has that."""
    model = load(files["mixed"], cache_dir)
    checkpoint = model.checkpoint
    held = {end: checkpoint.held_in(f"model.{end}", "q4") for end in MIXED if "layers" in end}
    assert held == {
        "layers.0.mlp.down_proj.weight": "q8",
        "layers.1.self_attn.v_proj.weight": "q8",
        "layers.1.mlp.up_proj.weight": "q8",
        "layers.1.self_attn.o_proj.weight": "float16",
    }
    assert checkpoint.held_in("lm_head.weight", "q4") == "q8"
    assert checkpoint.held_in("model.embed_tokens.weight", "q4") == "q4"
    assert checkpoint.held_in("lm_head.weight", "q8") == "q8"  # asked for: all are q8
    assert checkpoint.held_in("model.embed_tokens.weight", "float32") == "float32"

    blocks = {block.key: block for block in blocks_of(model, cache_dir, [1.0])[0]}
    exact = ["qkv", "o", "gate_up"]
    kinds = {name: blocks["attn_1" if name in exact[:2] else "ffn_1"] for name in exact}
    assert {name: block.tensors[name].dtype for name, block in kinds.items()} == {
        "qkv": "int8",  # q and k are 4 bit, v is 8
        "o": "float16",
        "gate_up": "int8",
    }
    assert blocks["attn_0"].tensors["qkv"].dtype == "uint8"
    for name, block in kinds.items():
        shard = next(
            shard
            for shard in TpiSystem().plan(CONFIG, Site(proportions=[1.0])).shards[0]
            if (shard.kind, shard.layer) == (block.kind, 1)
        )
        slices = block_tensors(CONFIG, shard)[name]
        expected = np.concatenate([cut(files["mixed"], piece) for piece in slices])
        np.testing.assert_array_equal(block_values(block, name)[0], expected)
    head = values_in_file(files["mixed"], "lm_head.weight", CONFIG)
    found = block_values(blocks["output"], "head")[0]
    largest = np.abs(head).reshape(len(head), -1, 32).max(-1, keepdims=True)
    step = largest / 127
    allowed = 0.6 * step + 127 * 2.0**-25  # half a step, and how its scale is rounded
    assert (np.abs(found - head).reshape(len(head), -1, 32) <= allowed).all()


@pytest.mark.parametrize("kind", ["Q4_0", "mixed"])
def test_planned_blocks_are_those_of_the_file(
    files: dict[str, Path], cache_dir: Path, kind: str
) -> None:
    model = load(files[kind], cache_dir)
    plan = TpiSystem().plan(CONFIG, Site(proportions=[2.0, 1.0], weights="q8"))
    held_in = model.checkpoint.held_in
    planned = planned_blocks(CONFIG, plan, model.weights, model.dtype, held_in)
    written = blocks_of(model, cache_dir, [2.0, 1.0])
    for ours, theirs in zip(planned, written, strict=True):
        assert [replace(b, path="") for b in ours] == [replace(b, path="") for b in theirs]


@pytest.mark.parametrize("weights", ["q8", "q4"])
def test_block_files_and_llamacpp_hold_the_same_numbers(
    wide: Path, cache_dir: Path, weights: str
) -> None:
    """Of one unquantised checkpoint: the q8 block files and the Q8_0 GGUF file, bit for bit."""
    model = model_of(wide, weights)
    path = gguf_file(model, cache_dir, GGUF_TYPES[weights])
    plan = TpiSystem().plan(model.config, Site(proportions=[1.0, 2.0], weights="q8"))
    for shards, blocks in zip(plan.shards, blocks_of(model, cache_dir, [1.0, 2.0]), strict=True):
        for shard, block in zip(shards, blocks, strict=True):
            for name, slices in block_tensors(model.config, shard).items():
                parts = [values_in_file(path, s.name, model.config) for s in slices]
                if name == "norm":
                    continue
                expected = np.concatenate(
                    [
                        part[slice(*s.rows), slice(*(s.cols or (None,)))]
                        for part, s in zip(parts, slices, strict=True)
                    ]
                )
                assert block_values(block, name)[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "mixed"])
def test_llamacpp_gets_the_numbers_of_the_file(
    files: dict[str, Path], cache_dir: Path, tmp_path: Path, kind: str
) -> None:
    """The file that is written for llama.cpp: packed as they were, but for what only it has."""
    model = load(files[kind], cache_dir)
    path = tmp_path / "again.gguf"
    write_gguf(path, model.checkpoint, model.folder, GGUF_TYPES[model.weights])
    for name, shape in CONFIG.tensor_shapes().items():
        before, was = rows_in_file(files[kind], name, CONFIG)
        after, now = rows_in_file(path, name, CONFIG)
        held = model.checkpoint.held_in(name, model.weights)
        assert now == ("F32" if len(shape) == 1 else GGUF_TYPES[held])
        if was == now:
            assert before.tobytes() == after.tobytes(), name


@pytest.mark.parametrize("kind", ["Q4_0", "mixed"])
@pytest.mark.parametrize(
    ("system", "proportions"),
    [
        (TpiSystem(), [1.0]),
        (TpiSystem(collective="ring", window=2), [3.0, 1.0]),
        (PipelineSystem(), [1.0, 1.0]),
    ],
    ids=["one", "window", "pipeline"],
)
def test_tokens_are_those_of_transformers_on_the_held_values(
    files: dict[str, Path], cache_dir: Path, tmp_path: Path, kind: str, system, proportions
) -> None:
    model = load(files[kind], cache_dir)
    num_devices = len(proportions)
    check(
        system,
        model.checkpoint,
        cache_dir,
        tmp_path,
        num_devices,
        20,
        weights=model.weights,
        proportions=proportions,
    )


def test_folders_for_libraries_are_written_on_demand(
    files: dict[str, Path], tmp_path: Path
) -> None:
    model = load(files["mixed"], tmp_path, weights="float32")
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == [
        model.folder.name if model.folder else ""
    ]
    whole, held = hugging_face_folder(model, tmp_path), held_folder(model, tmp_path)
    assert whole == held
    assert replace(read_config(whole), rms_eps=1e-5) == CONFIG
    quantised = load(files["mixed"], tmp_path)
    held = held_folder(quantised, tmp_path)
    assert held != whole
    for name in ("lm_head.weight", "model.layers.0.self_attn.q_proj.weight"):
        expected = torch.from_numpy(values_in_file(files["mixed"], name, CONFIG))
        assert torch.equal(tensor_in(whole, name), expected)
        is_changed = name == "lm_head.weight"  # from 6 bits in groups of 16
        assert torch.equal(tensor_in(held, name), expected) is not is_changed
    for path in (tmp_path / "models").rglob("*.safetensors"):
        path.unlink()
    for name in list(CONFIG.tensor_shapes())[:2]:
        assert quantised.checkpoint.read_rows(name, 0, 2).isfinite().all()


def tensor_in(folder: Path, name: str) -> torch.Tensor:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return load_file(folder / index["weight_map"][name])[name]


@pytest.mark.parametrize("name", ["biases", "rope_linear", "qwen2", "tied", "mqa"])
def test_what_the_file_says_of_the_model(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """A variant written as a GGUF file is read as the same model."""
    model = model_of(checkpoints[name])
    path = tmp_path / f"{name}.gguf"
    write_gguf(path, model.checkpoint, model.folder, "F32")
    again = load(path, tmp_path / "cache")
    eps = np.float32(model.config.rms_eps)
    assert again.config == replace(model.config, rms_eps=float(eps))
    for tensor, shape in model.config.tensor_shapes().items():
        rows = again.checkpoint.read_rows(tensor, 0, shape[0])
        assert torch.equal(rows, model.checkpoint.read_rows(tensor, 0, shape[0])), tensor


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaled_rope_of_llama_3_is_known_by_its_factors(factor: float, tmp_path: Path) -> None:
    rope = Rope(
        theta=500000.0,
        rope_type="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context_length=8192,
    )
    factors = rope_factors(rope, 128)
    assert rope_of_factors(factors, 500000.0) == rope
    factors[40] *= 1.01
    assert rope_of_factors(factors, 500000.0) is None


def test_unknown_rope_scaling_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = model_of(checkpoints["rope_llama3"])  # made for a context of 64
    path = tmp_path / "model.gguf"
    write_gguf(path, model.checkpoint, model.folder, "F32")
    with pytest.raises(ValueError, match=r"RoPE scaling is not that of Llama 3\.1"):
        load(path, tmp_path / "cache")


def test_a_file_that_ends_early(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(files["Q4_0"].read_bytes()[:-5000])
    with pytest.raises(ValueError, match="is not a readable GGUF file"):
        load(path, tmp_path / "cache")


def test_a_changed_file_is_another_model(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(files["Q4_0"].read_bytes())
    before = load(path, tmp_path / "cache").checkpoint.identity
    path.write_bytes(files["Q8_0"].read_bytes())
    after = load(path, tmp_path / "cache")
    assert after.checkpoint.identity != before
    assert after.weights == "q8"


def test_a_second_load_reads_no_header(
    files: dict[str, Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(files["Q4_0"], cache_dir)
    monkeypatch.setattr("tpi_bench.models.gguf.reader.in_helper", None)
    assert load(files["Q4_0"], cache_dir).folder == first.folder
