"""Configs and checkpoints in: both spellings, every variant, and what is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tpi_bench.contract.model import Model, ModelConfig, Rope
from tpi_bench.models.checkpoints import FolderCheckpoint
from tpi_bench.models.hf_config import parse_config, read_config
from tpi_bench.models.hf_folder import hugging_face_folder
from tpi_bench.models.sources import HuggingFaceModel
from tpi_bench.models.synthetic import SyntheticCheckpoint

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = parse_config(LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    new = parse_config(LLAMA | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}})
    assert (
        old.rope
        == new.rope
        == Rope(
            theta=5e5,
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_context_length=8192,
        )
    )
    legacy = parse_config(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert legacy.rope == Rope(rope_type="linear", factor=2.0)


def test_defaults_of_older_configs() -> None:
    config = parse_config(
        {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, eos=[2, 5]
    )
    assert config.num_kv_heads == 4
    assert config.head_dim == 16
    assert config.eos_ids == (2, 5)
    assert config.rope == Rope()


def test_qwen2_has_biases_on_qkv_only() -> None:
    config = parse_config(LLAMA | {"model_type": "qwen2"})
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, False, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "model type 'gemma2' is not supported"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "model type 'mixtral'"),
        ({"num_local_experts": 8}, "mixture-of-experts"),
        (
            {"model_type": "mistral", "sliding_window": 64},
            "sliding-window attention \\(64 tokens\\)",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64},
            "sliding-window attention",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE scaling 'yarn'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq checkpoints"),
        ({"num_key_value_heads": 3}, "cannot share 3 KV heads"),
    ],
)
def test_unsupported_models_are_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(LLAMA | changes)


def test_sliding_windows_that_are_off_are_fine() -> None:
    assert parse_config(LLAMA | {"model_type": "mistral", "sliding_window": None})
    assert parse_config(LLAMA | {"model_type": "mistral", "sliding_window": 256})
    assert parse_config(LLAMA | {"model_type": "qwen2", "sliding_window": 64})


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="lacks 'num_attention_heads'"):
        read_config(tmp_path)


@pytest.mark.parametrize("path", ["missing.gguf", "models/missing.gguf", "/nowhere/a/b.gguf"])
def test_a_gguf_file_that_is_not_there_is_no_name_on_the_hub(path: str, tmp_path: Path) -> None:
    words = re.escape(f"model.path={path}: there is no such file on this machine")
    with pytest.raises(ValueError, match=words):
        HuggingFaceModel(path=path).load(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("generation_config.json", "[1]", "generation_config.json does not hold a JSON object"),
        ("generation_config.json", "[1", "generation_config.json is not readable JSON"),
        ("config.json", json.dumps(LLAMA | {"quantization_config": "gptq"}), "wrong type"),
        ("config.json", json.dumps(LLAMA | {"hidden_size": "64"}), "wrong type"),
        ("config.json", json.dumps(LLAMA | {"num_hidden_layers": 0.5}), "num_layers=0.5"),
    ],
)
def test_senseless_configs_are_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("header", [b'{"a":5}', b"[1]", b'{"a":{"dtype":"F32"}}'])
def test_senseless_headers_are_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, header: bytes
) -> None:
    folder = copy_of(checkpoints["tied"], tmp_path / "model")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        FolderCheckpoint(folder, read_config(folder))


def copy_of(checkpoint: Path, target: Path) -> Path:
    target.mkdir()
    for path in checkpoint.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_broken_checkpoints_are_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(checkpoints["tied"], tmp_path / "truncated")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is truncated: 1000 bytes are missing"):
        FolderCheckpoint(folder, read_config(folder))
    weights.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        FolderCheckpoint(folder, read_config(folder))
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="convert it to safetensors"):
        FolderCheckpoint(folder, read_config(folder))
    foreign = copy_of(checkpoints["mha"], tmp_path / "foreign")
    (foreign / "config.json").write_bytes((checkpoints["gqa"] / "config.json").read_bytes())
    with pytest.raises(ValueError, match="k_proj"):
        FolderCheckpoint(foreign, read_config(foreign))
    sharded = copy_of(checkpoints["gqa"], tmp_path / "sharded")
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match="named by the index but missing"):
        FolderCheckpoint(sharded, read_config(sharded))


SHAPE = ModelConfig(
    num_layers=1,
    hidden=32,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    intermediate=200,
    vocab=64,
    context_length=64,
)


def test_synthetic_weights_do_not_depend_on_the_slice() -> None:
    checkpoint = SyntheticCheckpoint(SHAPE, seed=1, share_layers=False)
    name = "model.layers.0.mlp.gate_proj.weight"
    whole = checkpoint.read_rows(name, 0, 200)
    assert (checkpoint.read_rows(name, 50, 130) == whole[50:130]).all()
    assert abs(float(whole.std()) - 0.02) < 0.001
    other = SyntheticCheckpoint(SHAPE, seed=2, share_layers=False)
    assert not (other.read_rows(name, 0, 200) == whole).all()


def test_a_shape_is_written_out_for_libraries(tmp_path: Path) -> None:
    checkpoint = SyntheticCheckpoint(SHAPE, seed=1, share_layers=False)
    model = Model(
        name="tiny", checkpoint=checkpoint, dtype="float32", weights="float32", folder=None
    )
    folder = hugging_face_folder(model, tmp_path)
    assert hugging_face_folder(model, tmp_path) == folder
    written = FolderCheckpoint(folder, read_config(folder))
    assert written.config == SHAPE
    assert not written.share_layers
    for name, shape in SHAPE.tensor_shapes().items():
        expected = checkpoint.read_rows(name, 0, shape[0])
        assert (written.read_rows(name, 0, shape[0]) == expected).all()


def test_a_shape_is_written_out_in_half_precision(tmp_path: Path) -> None:
    """As it will be held: a library that offloads reads its bytes for every token."""
    checkpoint = SyntheticCheckpoint(SHAPE, seed=1, share_layers=False)
    model = Model(
        name="tiny", checkpoint=checkpoint, dtype="bfloat16", weights="bfloat16", folder=None
    )
    folder = hugging_face_folder(model, tmp_path)
    written = FolderCheckpoint(folder, read_config(folder))
    name = "model.layers.0.mlp.gate_proj.weight"
    found = written.read_rows(name, 0, 64)
    assert found.dtype == torch.bfloat16
    assert (found == checkpoint.read_rows(name, 0, 64).bfloat16()).all()
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_shared_layers_are_not_written_out(tmp_path: Path) -> None:
    checkpoint = SyntheticCheckpoint(SHAPE, seed=1, share_layers=True)
    model = Model(
        name="tiny", checkpoint=checkpoint, dtype="float32", weights="float32", folder=None
    )
    with pytest.raises(ValueError, match=r"^model\.share_layers=true works only with"):
        hugging_face_folder(model, tmp_path)
    assert not list(tmp_path.iterdir())
