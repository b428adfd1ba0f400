"""A Hugging Face folder as the sharder sees it: named tensors of which rows can be read.

Safetensors, in a single file or with an index, are read with plain `read` so that only the asked
rows are ever in memory (a memory map would count every touched page). `synthetic.py` has the other
kind of checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.contract.model import BYTES_PER_VALUE, DTYPES, Checkpoint, ModelConfig

if TYPE_CHECKING:
    import torch

SAFETENSORS_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "uint8": "U8",
}
CHUNK_BYTES = 16 << 20  # of values in fp32, read at a time
_DTYPES = {SAFETENSORS_NAMES[dtype]: dtype for dtype in DTYPES}
_MAX_HEADER_BYTES = 100 << 20  # the safetensors format's own bound


def refuse_shared_layers(checkpoint: Checkpoint) -> None:
    """Raises ValueError for layers that are all the first: only block files can be shared."""
    if checkpoint.share_layers:
        raise ValueError(
            "model.share_layers=true works only with systems that read block files (tpi, "
            "pipeline); set it to false for this system"
        )


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `offset` bytes into `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * BYTES_PER_VALUE[self.dtype]


class FolderCheckpoint(Checkpoint):
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
                    f"{folder}: tensor {name} has shape {list(entry.shape)}, its config.json asks "
                    f"for {list(shape)}; config and weights do not belong together"
                )

    @property
    def identity(self) -> dict[str, object]:
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._files]
        config = hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()
        return {"folder": str(self.folder.resolve()), "files": stats, "config": config}

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """As in `Checkpoint`. Raises ValueError when the file is shorter than its header says."""
        import torch

        entry = self._entries[name]
        raw = read_bytes(
            entry.path, entry.offset + start * entry.row_bytes, (stop - start) * entry.row_bytes
        )
        dtype = getattr(torch, entry.dtype)
        return torch.frombuffer(raw, dtype=dtype).view(stop - start, *entry.shape[1:])


def read_bytes(path: Path, offset: int, nbytes: int) -> bytearray:
    """A part of a file of weights. Raises ValueError when it cannot be read or ends before."""
    raw = bytearray(nbytes)
    view, done = memoryview(raw), 0
    try:
        with FileIO(path) as file:
            file.seek(offset)
            while done < nbytes:
                got = file.readinto(view[done:])
                if not got:
                    raise ValueError(f"{path} ends in the middle of a tensor; download it again")
                done += got
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; download it again") from error
    return raw


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
    """The tensors of a safetensors file, whose length is checked."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = file.read(length) if 2 <= length <= min(_MAX_HEADER_BYTES, size) else b""
    try:
        header = json.loads(text)
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
        dtype = _DTYPES.get(item["dtype"])
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
