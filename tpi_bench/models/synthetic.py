"""Checkpoints of a shape alone: values are made from a seed, the same whatever rows are asked for.

`SyntheticModel` of `sources.py` gives them to the sharder. For libraries they are written out as a
Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tpi_bench.contract.model import BYTES_PER_VALUE, Model, ModelConfig
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.models.checkpoints import refuse_shared_layers
from tpi_bench.models.hf_config import to_hf_config

if TYPE_CHECKING:
    import torch

_DTYPE = "float32"


class SyntheticCheckpoint:
    """Seeded random weights of a given shape; with `share_layers`, every layer equals layer 0.

    Each run of 64 rows has a seed of its own, so a slice costs its own rows and no more. Values are
    uniform with the standard deviation 0.02 that Llama-family models are initialised with.
    """

    _ROWS_PER_SEED = 64

    def __init__(self, config: ModelConfig, *, seed: int, share_layers: bool) -> None:
        self.config = config
        self.seed = seed
        self.share_layers = share_layers
        self._shapes = config.tensor_shapes()

    @property
    def identity(self) -> dict[str, object]:
        return {
            "synthetic": repr(self.config),
            "seed": self.seed,
            "share_layers": self.share_layers,
        }

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """As in `Checkpoint`, in fp32. Norms are all ones."""
        import torch

        shape = self._shapes[name]
        if self.share_layers:
            name = re.sub(r"^model\.layers\.\d+\.", "model.layers.0.", name)
        if "norm" in name:
            return torch.ones(stop - start)
        first = start // self._ROWS_PER_SEED
        last = -(-stop // self._ROWS_PER_SEED)
        parts = [self._run(name, index, shape[1:]) for index in range(first, last)]
        offset = start - first * self._ROWS_PER_SEED
        return torch.cat(parts)[offset : offset + stop - start]

    def _run(self, name: str, index: int, row_shape: tuple[int, ...]) -> torch.Tensor:
        import torch

        key = hashlib.sha256(f"{self.seed}/{name}/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        limit = 0.02 * math.sqrt(3)
        run = torch.empty(self._ROWS_PER_SEED, *row_shape)
        return run.uniform_(-limit, limit, generator=generator)


def hugging_face_folder(model: Model, cache_dir: Path) -> Path:
    """The model as a Hugging Face folder; a shape is written out. Raises ValueError."""
    if model.folder is not None:
        return model.folder
    checkpoint = model.checkpoint
    refuse_shared_layers(checkpoint)
    folder = cache_dir / "models" / f"{model.name}-{cache.digest(checkpoint.identity)}"
    if not folder.is_dir():
        assert isinstance(checkpoint, SyntheticCheckpoint)
        in_helper(write_synthetic, checkpoint, folder)
    return folder


def write_synthetic(checkpoint: SyntheticCheckpoint, folder: Path) -> None:
    """Make `folder` unless it is there. A file a layer: no more than a layer is in memory."""
    from safetensors.torch import save_file

    shapes = checkpoint.config.tensor_shapes()
    groups: dict[str, list[str]] = {}
    for name in shapes:
        group = name.split(".")[2] if name.startswith("model.layers.") else "ends"
        groups.setdefault(f"model-{group}.safetensors", []).append(name)
    with cache.locked(folder):
        if folder.is_dir():
            return
        nbytes = sum(math.prod(shape) for shape in shapes.values()) * BYTES_PER_VALUE[_DTYPE]
        cache.require_space(folder.parent, nbytes, "writing the synthetic model")
        with cache.new_folder(folder) as target:
            weight_map: dict[str, str] = {}
            for file, names in groups.items():
                tensors = {n: checkpoint.read_rows(n, 0, shapes[n][0]).contiguous() for n in names}
                save_file(tensors, target / file, metadata={"format": "pt"})
                weight_map |= dict.fromkeys(names, file)
            index = {"metadata": {}, "weight_map": weight_map}
            (target / "model.safetensors.index.json").write_text(json.dumps(index))
            config = to_hf_config(checkpoint.config, _DTYPE)
            (target / "config.json").write_text(json.dumps(config))
