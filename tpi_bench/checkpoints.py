"""Checkpoints as the sharder sees them: named tensors of which rectangles can be read.

Two kinds: a Hugging Face folder of safetensors (single file or with an index), read with plain
`pread` so that only the asked rows are ever in memory (a memory map would count every touched
page), and a synthetic shape whose values are made from a seed, the same whatever rectangle is
asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from tpi_bench.models import ModelConfig

SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CHUNK_BYTES = 16 << 20
_MAX_HEADER_BYTES = 100 << 20  # the safetensors format's own bound


class Checkpoint(Protocol):
    """`identity` changes whenever the weights may have; the block files' key holds it."""

    config: ModelConfig

    @property
    def identity(self) -> Any: ...

    def read_rows(self, name: str, start: int, stop: int) -> Any:
        """Rows [start, stop) of tensor `name` as a torch tensor in the checkpoint's own dtype."""
        ...


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `offset` bytes into `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * (4 if self.dtype == "float32" else 2)


class FolderCheckpoint:
    """A local Hugging Face folder. The constructor checks every file's header and length."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.folder = folder
        self.config = config
        self._entries: dict[str, TensorEntry] = {}
        self._files = list(_weight_files(folder))
        for path in self._files:
            self._entries.update(_read_header(path))
        for name, shape in config.tensor_shapes().items():
            entry = self._entries.get(name)
            if entry is None:
                raise ValueError(
                    f"{folder}: the checkpoint lacks tensor {name}; download the model again"
                )
            if entry.shape != shape:
                raise ValueError(
                    f"{folder}: tensor {name} has shape {list(entry.shape)}, its "
                    "config.json asks for "
                    f"{list(shape)}; config and weights do not belong together"
                )

    @property
    def identity(self) -> Any:
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._files]
        config = hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()
        return {"folder": str(self.folder.resolve()), "files": stats, "config": config}

    def read_rows(self, name: str, start: int, stop: int) -> Any:
        import torch

        entry = self._entries[name]
        nbytes = (stop - start) * entry.row_bytes
        raw = bytearray(nbytes)
        with _open_source(entry.path) as file:
            file.seek(entry.offset + start * entry.row_bytes)
            view, done = memoryview(raw), 0
            while done < nbytes:
                got = file.readinto(view[done:])
                if not got:
                    raise ValueError(
                        f"{entry.path} ends in the middle of tensor {name}; download it again"
                    )
                done += got
        dtype = getattr(torch, entry.dtype)
        return torch.frombuffer(raw, dtype=dtype).view(stop - start, *entry.shape[1:])


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
    def identity(self) -> Any:
        return {
            "synthetic": repr(self.config),
            "seed": self.seed,
            "share_layers": self.share_layers,
        }

    def read_rows(self, name: str, start: int, stop: int) -> Any:
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

    def _run(self, name: str, index: int, row_shape: tuple[int, ...]) -> Any:
        import torch

        key = hashlib.sha256(f"{self.seed}/{name}/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        limit = 0.02 * math.sqrt(3)
        run = torch.empty(self._ROWS_PER_SEED, *row_shape)
        return run.uniform_(-limit, limit, generator=generator)


def _open_source(path: Path) -> FileIO:
    try:
        return FileIO(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; download it again") from error


def _weight_files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        try:
            names = sorted(
                {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{index} is not a safetensors index ({error}); download the model again"
            ) from error
    elif single.is_file():
        names = [single.name]
    else:
        others = sorted(path.name for path in folder.glob("*.bin"))
        hint = f" (it holds {others[0]}; convert it to safetensors)" if others else ""
        raise ValueError(
            f"{folder} holds no model.safetensors or model.safetensors.index.json{hint}"
        )
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is named by the index but missing; download the model again")
        yield path


def _read_header(path: Path) -> dict[str, TensorEntry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size):
            raise ValueError(
                f"{path} is not a safetensors file (no valid header); download it again"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(
                f"{path} is not a safetensors file (no valid header); download it again"
            ) from error
    try:
        entries, end = _tensor_entries(path, header, 8 + length)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a safetensors file (its header makes no sense); download it again"
        ) from error
    if size < 8 + length + end:
        missing = 8 + length + end - size
        raise ValueError(f"{path} is truncated: {missing} bytes are missing; download it again")
    return entries


def _tensor_entries(
    path: Path, header: dict[str, Any], data_start: int
) -> tuple[dict[str, TensorEntry], int]:
    """The floating-point tensors of a header, and where the last one ends in the data."""
    entries, end = {}, 0
    header.pop("__metadata__", None)
    for name, item in header.items():
        dtype = SAFETENSORS_DTYPES.get(item["dtype"])
        if dtype is None:
            if item["dtype"].startswith(("I", "U", "B")):
                continue  # integer buffers are never weights of this family
            raise ValueError(
                f"{path}: tensor {name} is {item['dtype']}; supported are F32, F16 and BF16"
            )
        first, last = item["data_offsets"]
        end = max(end, last)
        entries[name] = TensorEntry(path, dtype, tuple(item["shape"]), data_start + first)
    return entries, end
