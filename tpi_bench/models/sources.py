"""The `model` group: a local folder, the Hugging Face hub, a GGUF file, the demo, or a shape.

A source is a dataclass behind `model=`; `load` checks the model without torch and gives a `Model`.
What has to be fetched or made for it lies in the cache afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tpi_bench.contract.model import DTYPES, Model, ModelConfig, Rope
from tpi_bench.models.checkpoints import FolderCheckpoint
from tpi_bench.models.demo_model import demo_folder
from tpi_bench.models.gguf.reader import folder_of_gguf
from tpi_bench.models.hf_config import read_config
from tpi_bench.models.hub import hub_folder
from tpi_bench.models.synthetic import SyntheticCheckpoint


@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel:
    """`model=hf model.path=`: a folder or a GGUF file on this machine, else an id on the hub."""

    name: str = "hf"
    path: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)
        if not self.path:
            raise ValueError(
                "model.path is missing; give a Hugging Face folder, a GGUF file or a hub id"
            )

    def load(self, cache_dir: Path) -> Model:
        name = Path(self.path or "").name if self.name == "hf" else self.name
        return _model_in(self._folder(cache_dir), name, self.dtype)

    def _folder(self, cache_dir: Path) -> Path:
        assert self.path is not None
        path = Path(self.path).expanduser()
        if path.is_file() and path.suffix == ".gguf":
            return folder_of_gguf(path, cache_dir)
        if path.is_file():
            raise ValueError(
                f"model.path={path} is a file; give its Hugging Face folder, or a .gguf file"
            )
        is_hub_id = not path.exists() and self.path.count("/") == 1 and self.path[0] not in "/.~"
        return hub_folder(self.path) if is_hub_id else path


@dataclass(frozen=True, kw_only=True)
class DemoModel:
    """`model=smollm2_135m`: a real small model from the package index; see `demo_model.py`."""

    name: str = "smollm2_135m"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)

    def load(self, cache_dir: Path) -> Model:
        return _model_in(demo_folder(cache_dir), self.name, self.dtype)


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
        _check_dtype(self.dtype)

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


def _model_in(folder: Path, name: str, dtype: str) -> Model:
    """The model of a Hugging Face folder, checked."""
    checkpoint = FolderCheckpoint(folder, read_config(folder))
    return Model(name=name, checkpoint=checkpoint, dtype=dtype, folder=folder)


def _check_dtype(dtype: str) -> None:
    """Raises ValueError for a dtype the engine does not compute in."""
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype={dtype} is not supported; choose one of {', '.join(DTYPES)}")
