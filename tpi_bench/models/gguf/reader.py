"""What a GGUF file says of its model: config, tokenizer and where its tensors lie.

Read once, into a small folder in the cache; `checkpoint.py` then reads weights from the file
itself. Config and tokenizer come from transformers' own GGUF reader; what that leaves out (RoPE
scaling, biases, where to stop) is read here. A file of ours has kept its tokenizer's own files.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tpi_bench.contract.model import ModelConfig
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.models.gguf.names import hugging_face_name, permuted_parts
from tpi_bench.models.gguf.rope import rope_of_factors
from tpi_bench.models.gguf.vocabulary import restore_tokenizer
from tpi_bench.models.hf_config import read_config

if TYPE_CHECKING:
    from gguf import GGUFReader

_FORMAT_VERSION = 3
INDEX = "tensors.json"
_ROPE_FACTORS = "rope_freqs.weight"
_ARCHITECTURES = ("llama", "qwen2")
_STOPS = ("eos", "eot", "eom")
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class GgufEntry:
    """Where one tensor lies: rows of `row_bytes` in the type `kind`, from `offset` on.

    `num_heads` is set where the rows of each head are in llama.cpp's order.
    """

    kind: str
    shape: list[int]
    offset: int
    row_bytes: int
    num_heads: int | None


def folder_of_gguf(source: Path, cache_dir: Path) -> Path:
    """The small folder of a GGUF file, in the cache, made if it is missing. Raises ValueError."""
    stat = source.stat()
    key = [_FORMAT_VERSION, str(source.resolve()), stat.st_size, stat.st_mtime_ns]
    folder = cache_dir / "models" / f"{source.stem}-{cache.digest(key)}"
    if not folder.is_dir():
        in_helper(_make_folder, source, folder)
    return folder


def read_entries(folder: Path) -> dict[str, GgufEntry]:
    """The tensors of the file that `folder` describes, by the names of a checkpoint."""
    raw = json.loads((folder / INDEX).read_text())
    return {name: GgufEntry(**entry) for name, entry in raw.items()}


def _make_folder(source: Path, folder: Path) -> None:
    with cache.locked(folder):
        if not folder.is_dir():
            with cache.new_folder(folder) as target:
                describe_gguf(source, target)


def describe_gguf(source: Path, folder: Path) -> None:
    """Put config, tokenizer and the list of tensors into `folder`. Raises ValueError."""
    import gguf

    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, OSError) as error:
        raise ValueError(f"{source} is not a readable GGUF file: {error}") from error
    architecture = reader.fields["general.architecture"].contents()
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"{source}: GGUF architecture {architecture!r} is not supported; use "
            f"{' or '.join(_ARCHITECTURES)}"
        )
    parts = _field(reader, "split.count") or 1
    if parts > 1:
        raise ValueError(
            f"{source} is one of {parts} parts of a model; join them with llama-gguf-split --merge"
        )
    _save_config(source, folder, reader, architecture)
    config = read_config(folder)
    entries = _entries(source, reader, config, architecture)
    if not restore_tokenizer(reader, folder):
        _save_tokenizer(source, folder)
    cache.write_json(folder / INDEX, {name: asdict(entry) for name, entry in entries.items()})


def _save_config(source: Path, folder: Path, reader: GGUFReader, architecture: str) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    except Exception as error:  # the library raises anything, bare Exception included
        raise ValueError(f"{source}: its config cannot be read: {error}") from error
    config.save_pretrained(folder)
    path = folder / "config.json"
    raw: dict[str, Any] = json.loads(path.read_text())
    names = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" in names:
        raw["vocab_size"] = int(names["token_embd.weight"].shape[1])
    if architecture == "llama":
        raw["attention_bias"] = "blk.0.attn_output.bias" in names
        raw["mlp_bias"] = "blk.0.ffn_gate.bias" in names
    stops = [_field(reader, f"tokenizer.ggml.{kind}_token_id") for kind in _STOPS]
    raw["eos_token_id"] = list(dict.fromkeys(stop for stop in stops if stop is not None)) or None
    raw.pop("rope_scaling", None)
    raw["rope_parameters"] = _rope_parameters(source, reader, architecture)
    path.write_text(json.dumps(raw, indent=1))


def _rope_parameters(source: Path, reader: GGUFReader, architecture: str) -> dict[str, Any]:
    """As in a config.json; what the engine cannot run is refused when that is read."""
    theta = float(_field(reader, f"{architecture}.rope.freq_base") or 10000.0)
    kind = _field(reader, f"{architecture}.rope.scaling.type")
    factors = next((t.data for t in reader.tensors if t.name == _ROPE_FACTORS), None)
    if factors is not None:
        rope = rope_of_factors(np.array(factors, dtype=np.float32), theta)
        if rope is None:
            raise ValueError(
                f"{source}: its RoPE scaling is not that of Llama 3.1 and cannot be told from the "
                "file; use the Hugging Face folder"
            )
        return {
            "rope_type": rope.rope_type,
            "rope_theta": rope.theta,
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_context_length,
        }
    if kind in (None, "none"):
        return {"rope_type": "default", "rope_theta": theta}
    factor = _field(reader, f"{architecture}.rope.scaling.factor")
    return {"rope_type": kind, "rope_theta": theta, "factor": factor}


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.fields.get(name)
    return None if field is None else field.contents()


def _entries(
    source: Path, reader: GGUFReader, config: ModelConfig, architecture: str
) -> dict[str, GgufEntry]:
    """Every tensor of the config, and no other. Raises ValueError."""
    permuted = permuted_parts(architecture, config.num_heads, config.num_kv_heads)
    shapes = config.tensor_shapes()
    entries = {}
    for tensor in reader.tensors:
        if tensor.name == _ROPE_FACTORS:
            continue
        name, part = hugging_face_name(tensor.name)
        shape = [int(n) for n in reversed(tensor.shape)]
        if shapes.get(name) != tuple(shape):
            raise ValueError(
                f"{source}: tensor {tensor.name} of shape {shape} has no place in the model that "
                "the file's metadata tells of"
            )
        kind = tensor.tensor_type.name
        if kind not in _FLOATS:
            _refuse_type(source, tensor)
        entries[name] = GgufEntry(
            kind=kind,
            shape=shape,
            offset=int(tensor.data_offset),
            row_bytes=int(tensor.n_bytes) // shape[0],
            num_heads=permuted.get(part),
        )
    if missing := sorted(shapes.keys() - entries.keys()):
        raise ValueError(f"{source} lacks tensor {missing[0]}; download the model again")
    return entries


def _refuse_type(source: Path, tensor: Any) -> None:
    """Raises ValueError for a type of values that the gguf package cannot read."""
    import gguf
    from gguf.quants import dequantize

    _, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    try:
        if len(tensor.shape) == 1:
            raise NotImplementedError
        dequantize(np.zeros((1, block_bytes), np.uint8), tensor.tensor_type)
    except NotImplementedError:
        raise ValueError(
            f"{source}: tensor {tensor.name} is {tensor.tensor_type.name}, which cannot be read; "
            "use a file of another type, like Q8_0 or Q4_K_M"
        ) from None


def _save_tokenizer(source: Path, folder: Path) -> None:
    """The model can be used without; prompts are token ids then."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the libraries raise anything, bare Exception included
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        print(
            f"{source}: its tokenizer cannot be read ({reason}); give "
            "workload.prompt_ids=[1,2,3] instead of a prompt",
            file=sys.stderr,
        )
