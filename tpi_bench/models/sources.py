"""The `model` group: a local folder, the Hugging Face hub, a GGUF file, the demo, or a shape.

A source is a dataclass behind `model=`; `load` checks the model without torch and gives a `Model`.
What has to be fetched or made for it lies in the cache afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tpi_bench.contract.model import (
    DTYPES,
    QUANTISED,
    WEIGHTS,
    Checkpoint,
    Model,
    ModelConfig,
    Rope,
    resolve_types,
)
from tpi_bench.contract.setting import needed, setting
from tpi_bench.models.checkpoints import FolderCheckpoint
from tpi_bench.models.demo_model import demo_folder
from tpi_bench.models.gguf.checkpoint import GgufCheckpoint
from tpi_bench.models.gguf.reader import folder_of_gguf
from tpi_bench.models.hf_config import read_config
from tpi_bench.models.hub import hub_folder
from tpi_bench.models.quantised import refuse_cut_groups
from tpi_bench.models.synthetic import SyntheticCheckpoint


@dataclass(frozen=True, kw_only=True)
class _Precision:
    """What every source says: what is computed in, and what the weights are held in."""

    dtype: str = setting(
        "auto",
        "what is computed in; auto: as weights, float32 for q8 and q4",
        ("auto", *DTYPES),
        common=True,
    )
    weights: str = setting(
        "auto",
        "what weights are held in; auto: as dtype, and what a .gguf file holds",
        ("auto", *WEIGHTS),
        common=True,
    )

    def __post_init__(self) -> None:
        resolve_types(self.dtype, self.weights)

    def _model(
        self, name: str, checkpoint: Checkpoint, folder: Path | None, own: str | None = None
    ) -> Model:
        """`own` is what the file holds weights in, where `auto` means that.

        An asked dtype is followed by weights that are not quantised.
        """
        weights = self.weights
        if weights == "auto" and own and (self.dtype == "auto" or own in QUANTISED):
            weights = own
        dtype, weights = resolve_types(self.dtype, weights)
        refuse_cut_groups(checkpoint.config, weights)
        return Model(name=name, checkpoint=checkpoint, dtype=dtype, weights=weights, folder=folder)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel(_Precision):
    """`model=hf model.path=`: a folder or a GGUF file on this machine, else an id on the hub."""

    name: str = setting("hf", "how rows call it")
    path: str | None = setting(
        None,
        "a Hugging Face folder or a .gguf file on this machine, or an id on the hub",
        common=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError(
                "model.path is missing; give a Hugging Face folder, a GGUF file or a hub id"
            )

    def load(self, cache_dir: Path) -> Model:
        assert self.path is not None
        name = Path(self.path).name if self.name == "hf" else self.name
        path = Path(self.path).expanduser()
        if path.is_file() and path.suffix == ".gguf":
            gguf = GgufCheckpoint(path, folder_of_gguf(path, cache_dir))
            return self._model(name, gguf, gguf.folder, gguf.own_weights)
        if path.suffix == ".gguf" and not path.exists():
            raise ValueError(
                f"model.path={path}: there is no such file on this machine; give that of a .gguf "
                "file which is there, a Hugging Face folder or a hub id"
            )
        if path.is_file():
            raise ValueError(
                f"model.path={path} is a file; give its Hugging Face folder, or a .gguf file"
            )
        is_hub_id = not path.exists() and self.path.count("/") == 1 and self.path[0] not in "/.~"
        folder = hub_folder(self.path) if is_hub_id else path
        return self._model(name, FolderCheckpoint(folder, read_config(folder)), folder)


@dataclass(frozen=True, kw_only=True)
class DemoModel(_Precision):
    """`model=smollm2_135m`: a real small model from the package index; see `demo_model.py`."""

    name: str = setting("smollm2_135m", "how rows call it")

    def load(self, cache_dir: Path) -> Model:
        folder = demo_folder(cache_dir)
        return self._model(self.name, FolderCheckpoint(folder, read_config(folder)), folder)


@dataclass(frozen=True, kw_only=True)
class SyntheticModel(_Precision):
    """A shape with seeded random weights: what speed and memory need, without the download.

    With `share_layers` all layers read the files of the first, so that 70B shapes fit on a small
    disk; every block is still read from the disk each time.
    """

    name: str = needed("how rows call it")
    num_layers: int = needed("decoder layers")
    hidden: int = needed("size of a hidden state")
    num_heads: int = needed("query heads")
    num_kv_heads: int = needed("key-value heads")
    intermediate: int = needed("columns of the FFN")
    vocab: int = needed("tokens there are")
    context_length: int = needed("positions at most")
    rope_theta: float = setting(10000.0, "base of the rotary embedding")
    seed: int = setting(0, "of the random weights")
    share_layers: bool = setting(
        False,
        "all layers read the files of the first, so that 70B shapes fit on a small disk",
        common=True,
    )

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
        return self._model(self.name, checkpoint, None)
