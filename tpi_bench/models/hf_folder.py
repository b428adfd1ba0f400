"""A model as a Hugging Face folder: what libraries open, and the oracle.

That is the checkpoint itself where it is such a folder. A shape and a GGUF file are written out on
demand, and for the oracle so are the values that weights have when they are held in another type
than is computed in.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tpi_bench.contract.model import BYTES_PER_VALUE, Checkpoint, Model
from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.models.checkpoints import FolderCheckpoint, refuse_shared_layers
from tpi_bench.models.hf_config import to_hf_config
from tpi_bench.models.quantised import held_rows

if TYPE_CHECKING:
    import torch

_CONFIG = "config.json"
_COPIED = (_CONFIG, "generation_config.json")
Types = tuple[str, str]  # what weights are held in, and the type in which that is written


def hugging_face_folder(model: Model, cache_dir: Path) -> Path:
    """The model with the checkpoint's own values, for libraries. Raises ValueError.

    What has no such folder is written in the type that the library will hold, as models are
    published: one that has to convert reads twice the bytes, at every use if it offloads.
    """
    if isinstance(model.checkpoint, FolderCheckpoint):
        return model.checkpoint.folder
    is_narrow = model.weights == model.dtype != "float32"
    return _written(model, cache_dir, (model.weights, model.dtype) if is_narrow else None)


def held_folder(model: Model, cache_dir: Path) -> Path:
    """The model with the values of its weights as they are held, in what is computed in.

    For the oracle. Raises ValueError.
    """
    if model.weights == model.dtype:  # whoever loads it converts it
        return hugging_face_folder(model, cache_dir)
    return _written(model, cache_dir, (model.weights, model.dtype))


def _written(model: Model, cache_dir: Path, types: Types | None) -> Path:
    checkpoint = model.checkpoint
    refuse_shared_layers(checkpoint)
    key = checkpoint.identity if types is None else [checkpoint.identity, *types]
    folder = cache_dir / "models" / f"{model.name}-{cache.digest(key)}"
    if not folder.is_dir():
        in_helper(write_folder, folder, checkpoint, model.folder, types)
    return folder


def write_folder(
    folder: Path, checkpoint: Checkpoint, source: Path | None, types: Types | None
) -> None:
    """Make `folder` unless it is there. Its config is that of `source`, of a shape one of its own.

    With `types` the values are those of weights held in the first, widened to the second.
    """
    with cache.locked(folder):
        if folder.is_dir():
            return
        value_bytes = BYTES_PER_VALUE["float32" if types is None else types[1]]
        nbytes = value_bytes * sum(math.prod(s) for s in checkpoint.config.tensor_shapes().values())
        cache.require_space(folder.parent, nbytes, "writing the model as a Hugging Face folder")
        with cache.new_folder(folder) as target:
            write_tensors(target, checkpoint, types)
            if source is None:
                config = to_hf_config(checkpoint.config, "float32" if types is None else types[1])
                (target / _CONFIG).write_text(json.dumps(config))
                return
            for name in _COPIED:
                if (source / name).is_file():
                    shutil.copyfile(source / name, target / name)


def write_tensors(target: Path, checkpoint: Checkpoint, types: Types | None = None) -> None:
    """Fill a folder with safetensors and their index: a file a layer, which is all in memory."""
    from safetensors.torch import save_file

    shapes = checkpoint.config.tensor_shapes()
    files: dict[str, list[str]] = {}
    for name in shapes:
        is_end = not name.startswith("model.layers.")
        part = name.removesuffix(".weight") if is_end else name.split(".")[2]
        files.setdefault(f"model-{part}.safetensors", []).append(name)
    total = sum(math.prod(shape) for shape in shapes.values())
    weight_map: dict[str, str] = {}
    with cache.progress(4 * total, "writing a Hugging Face folder") as bar:
        for file, names in files.items():
            tensors = {name: _values(checkpoint, name, shapes[name], types) for name in names}
            save_file(tensors, target / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
            bar.update(4 * sum(math.prod(shapes[name]) for name in names))
    index = {"metadata": {}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def _values(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], types: Types | None
) -> torch.Tensor:
    """A whole tensor; vectors are as they are in the checkpoint."""
    import torch

    if types is None or len(shape) == 1:
        return checkpoint.read_rows(name, 0, shape[0]).contiguous()
    held, dtype = checkpoint.held_in(name, types[0]), getattr(torch, types[1])
    return held_rows(checkpoint, name, (0, shape[0]), held).to(dtype).contiguous()
