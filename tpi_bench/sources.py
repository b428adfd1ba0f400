"""Where a model comes from: a local folder, the Hugging Face hub, GGUF, the demo, or a shape.

Each source is a dataclass behind `model=`; `load` checks it without torch and gives a `Model`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpi_bench import cache
from tpi_bench.checkpoints import Checkpoint, FolderCheckpoint, SyntheticCheckpoint
from tpi_bench.models import DTYPES, ModelConfig, Rope, read_config, to_hf_config

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is there. `folder` is its Hugging Face folder, None for a synthetic shape."""

    name: str
    checkpoint: Checkpoint
    dtype: str
    folder: Path | None

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config


@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel:
    """`model=hf model.path=`: a folder or a GGUF file on this machine, else an id on the hub."""

    name: str = "hf"
    path: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if not self.path:
            raise ValueError(
                "model.path is missing; give a Hugging Face folder, a GGUF file or a hub id"
            )

    def load(self, cache_dir: Path) -> Model:
        folder = self._folder(cache_dir)
        config = read_config(folder)
        return Model(
            name=Path(self.path or "").name if self.name == "hf" else self.name,
            checkpoint=FolderCheckpoint(folder, config),
            dtype=self.dtype,
            folder=folder,
        )

    def _folder(self, cache_dir: Path) -> Path:
        assert self.path is not None
        path = Path(self.path).expanduser()
        if path.is_file() and path.suffix == ".gguf":
            return _converted(path, cache_dir)
        if path.is_file():
            raise ValueError(
                f"model.path={path} is a file; give its Hugging Face folder, or a .gguf file"
            )
        is_hub_id = not path.exists() and self.path.count("/") == 1 and self.path[0] not in "/.~"
        return _from_hub(self.path) if is_hub_id else path


@dataclass(frozen=True, kw_only=True)
class DemoModel:
    """`model=smollm2_135m`: a real small model from the package index; see `demo_model.py`."""

    name: str = "smollm2_135m"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def load(self, cache_dir: Path) -> Model:
        from tpi_bench.helper import in_helper

        folder = cache_dir / "models" / "smollm2-135m-instruct"
        if not folder.is_dir():
            in_helper(_fetch_demo_model, folder)
        return Model(
            name=self.name,
            checkpoint=FolderCheckpoint(folder, read_config(folder)),
            dtype=self.dtype,
            folder=folder,
        )


@dataclass(frozen=True, kw_only=True)
class SyntheticModel:
    """A shape with seeded random weights: what speed and memory need, without the download.

    With `share_layers` all layers read the files of the first, so that 70B shapes fit on a small
    disk; every block is still read from the disk each time.
    """

    name: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    intermediate: int
    vocab: int
    context_length: int
    rope_theta: float = 10000.0
    dtype: str = "float32"
    seed: int = 0
    share_layers: bool = False

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def load(self, cache_dir: Path) -> Model:
        if self.hidden % self.num_heads:
            raise ValueError(
                f"model.hidden={self.hidden} is not a multiple of num_heads={self.num_heads}"
            )
        config = ModelConfig(
            num_layers=self.num_layers,
            hidden=self.hidden,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.hidden // self.num_heads,
            intermediate=self.intermediate,
            vocab=self.vocab,
            context_length=self.context_length,
            rope=Rope(theta=self.rope_theta),
        )
        checkpoint = SyntheticCheckpoint(config, seed=self.seed, share_layers=self.share_layers)
        return Model(name=self.name, checkpoint=checkpoint, dtype=self.dtype, folder=None)


def hugging_face_folder(model: Model, cache_dir: Path) -> Path:
    """The model as a Hugging Face folder, for systems that need one; shapes are written out."""
    from tpi_bench.helper import in_helper

    if model.folder is not None:
        return model.folder
    assert isinstance(model.checkpoint, SyntheticCheckpoint)
    if model.checkpoint.share_layers:
        raise ValueError(
            "model.share_layers=true works only with systems that read block files (tpi, "
            "pipeline); "
            "set it to false for this system"
        )
    folder = cache_dir / "models" / f"{model.name}-{cache.digest(model.checkpoint.identity)}"
    if not folder.is_dir():
        in_helper(_write_synthetic, model.checkpoint, folder)
    return folder


def check_dtype(dtype: str) -> None:
    """Raises ValueError for a dtype the engine does not compute in."""
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype={dtype} is not supported; choose one of {', '.join(DTYPES)}")


def _from_hub(repository: str) -> Path:
    """The repository's files in the hub's own cache, fetched if they are not there."""
    import huggingface_hub
    from huggingface_hub.utils import logging, tqdm

    class Bar(tqdm):
        """On a terminal only, and gone when it is done."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **({"disable": None} | kwargs | {"leave": False}))

    logging.set_verbosity_error()
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=_HUB_FILES, tqdm_class=Bar)
        )
    except Exception as error:  # the library raises anything: of HTTP, of JSON, AttributeError
        reason, advice = _hub_trouble(error)
        raise ValueError(
            f"model.path={repository} is no folder on this machine and could not be fetched from "
            f"the Hugging Face hub ({reason}); {advice}, or give a local folder"
        ) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"model.path={repository}: the repository on the hub holds no model files that can be "
            "used (config.json and *.safetensors); give another one, a local folder or a .gguf file"
        )
    return folder


def _hub_trouble(error: Exception) -> tuple[str, str]:
    """Why the hub gave nothing, in a few words, and what can be done."""
    from huggingface_hub.errors import HFValidationError

    reason = str(error).strip().split("\n")[0] or type(error).__name__
    responses = [getattr(e, "response", None) for e in (error, error.__cause__)]
    if any(getattr(response, "status_code", None) in (401, 403) for response in responses):
        return reason, "the name may be wrong or the model need a login (hf auth login): check both"
    is_nonsense = isinstance(
        error, (ValueError, LookupError, TypeError, AttributeError, AssertionError)
    )
    if is_nonsense and not isinstance(error, (OSError, HFValidationError)):
        return (
            f"its answer is not that of a hub: {reason}",
            "check HF_ENDPOINT and whether a proxy or a login page answers in the hub's place",
        )
    return reason, "check the name and the connection"


def _converted(path: Path, cache_dir: Path) -> Path:
    from tpi_bench.helper import in_helper

    stat = path.stat()
    key = cache.digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    folder = cache_dir / "models" / f"{path.stem}-{key}"
    if not folder.is_dir():
        in_helper(_convert, path, folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    from tpi_bench.gguf_import import convert_gguf

    with cache.locked(folder):
        if not folder.is_dir():
            with cache.new_folder(folder) as target:
                convert_gguf(path, target)


def _fetch_demo_model(folder: Path) -> None:
    from tpi_bench.demo_model import fetch_demo_model

    fetch_demo_model(folder)


def _write_synthetic(checkpoint: SyntheticCheckpoint, folder: Path) -> None:
    """One safetensors file a layer, so that no more than a layer is in memory."""
    from safetensors.torch import save_file

    shapes = checkpoint.config.tensor_shapes()
    groups: dict[str, list[str]] = {}
    for name in shapes:
        group = name.split(".")[2] if name.startswith("model.layers.") else "ends"
        groups.setdefault(f"model-{group}.safetensors", []).append(name)
    with cache.locked(folder):
        if folder.is_dir():
            return
        values = sum(rows * (cols[0] if cols else 1) for rows, *cols in shapes.values())
        cache.require_space(folder.parent, 4 * values, "writing the synthetic model")
        with cache.new_folder(folder) as target:
            weight_map: dict[str, str] = {}
            for file, names in groups.items():
                tensors = {n: checkpoint.read_rows(n, 0, shapes[n][0]).contiguous() for n in names}
                save_file(tensors, target / file, metadata={"format": "pt"})
                weight_map |= dict.fromkeys(names, file)
            index = {"metadata": {}, "weight_map": weight_map}
            (target / "model.safetensors.index.json").write_text(json.dumps(index))
            config = to_hf_config(checkpoint.config, "float32")
            (target / "config.json").write_text(json.dumps(config))
