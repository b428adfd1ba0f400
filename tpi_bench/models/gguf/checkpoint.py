"""A GGUF file as the sharder sees it: rows straight from the file, quantised ones as they are.

Rows are read with plain `read`, so that only what is asked for is ever in memory. What q8 or q4
weights are in the file goes into block files bit for bit; anything else is dequantised by the
`gguf` package. `sources.py` makes them.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tpi_bench.contract.model import DTYPES, GROUP, QUANTISED, Checkpoint
from tpi_bench.models.checkpoints import read_bytes
from tpi_bench.models.gguf.names import undo_permutation
from tpi_bench.models.gguf.reader import read_entries
from tpi_bench.models.hf_config import read_config
from tpi_bench.models.quantised import GGUF_TYPES, WEIGHTS_OF_TYPES

if TYPE_CHECKING:
    import torch

_SYMMETRIC = ("Q4_0", "Q5_0")  # groups of 32 small whole numbers with a scale: q8 holds them too


class GgufCheckpoint(Checkpoint):
    """A local file; `folder` is what `reader.folder_of_gguf` made of it."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.config = read_config(folder)
        self._entries = read_entries(folder)

    @property
    def identity(self) -> dict[str, object]:
        stat = self.path.stat()
        config = hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()
        return {
            "gguf": str(self.path.resolve()),
            "file": [stat.st_size, stat.st_mtime_ns],
            "config": config,
        }

    @property
    def own_weights(self) -> str:
        """What most values are held in; q8 where that is a type that only llama.cpp has."""
        counts: Counter[str] = Counter()
        for entry in self._entries.values():
            if len(entry.shape) > 1:
                counts[entry.kind] += math.prod(entry.shape)
        return WEIGHTS_OF_TYPES.get(counts.most_common(1)[0][0], "q8")

    def held_in(self, name: str, weights: str) -> str:
        """In a quantised file that is taken as it is, matrices of another type keep that, or
        become q8 where only llama.cpp has it (a head in Q6_K): what loses least in few bytes.
        """
        if weights not in QUANTISED or weights != self.own_weights:
            return weights
        return WEIGHTS_OF_TYPES.get(self._entries[name].kind, "q8")

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """As in `Checkpoint`; quantised rows in fp32."""
        import gguf
        import torch
        from gguf.quants import dequantize

        entry = self._entries[name]
        rows = self._raw_rows(name, start, stop)
        held = WEIGHTS_OF_TYPES.get(entry.kind)
        if held in DTYPES:
            return torch.from_numpy(rows).view(getattr(torch, held)).view(-1, *entry.shape[1:])
        return torch.from_numpy(dequantize(rows, gguf.GGMLQuantizationType[entry.kind]))

    def packed_rows(self, name: str, start: int, stop: int, weights: str) -> np.ndarray | None:
        """As in `Checkpoint`. Narrower whole numbers with the same scales are q8's too."""
        kind = self._entries[name].kind
        if kind == GGUF_TYPES[weights]:
            return self._raw_rows(name, start, stop)
        if kind in _SYMMETRIC and weights == "q8":
            return _widened(self._raw_rows(name, start, stop), kind)
        return None

    def _raw_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows as they are packed in the file, uint8 (n, bytes of a row), in a checkpoint's order.

        Of heads in llama.cpp's order whole ones are read.
        """
        entry = self._entries[name]
        unit = entry.shape[0] // entry.num_heads if entry.num_heads else 1
        first, last = start // unit * unit, -(-stop // unit) * unit
        raw = read_bytes(
            self.path, entry.offset + first * entry.row_bytes, (last - first) * entry.row_bytes
        )
        rows = np.frombuffer(raw, np.uint8).reshape(last - first, entry.row_bytes)
        if entry.num_heads:
            rows = undo_permutation(rows, (last - first) // unit)[start - first : stop - first]
        return rows


def _widened(rows: np.ndarray, kind: str) -> np.ndarray:
    """Q8_0 rows with the scales and whole numbers of rows in a narrower type."""
    import gguf
    from gguf.quants import dequantize

    number = gguf.GGMLQuantizationType[kind]
    _, group_bytes = gguf.GGML_QUANT_SIZES[number]
    groups = rows.reshape(rows.shape[0], -1, group_bytes)
    scales = np.ascontiguousarray(groups[:, :, :2]).view(np.float16)
    wide = scales.astype(np.float32)
    values = dequantize(rows, number).reshape(rows.shape[0], -1, GROUP)
    numbers = np.divide(values, wide, out=np.zeros_like(values), where=wide != 0)
    pieces = scales.view(np.uint8), np.rint(numbers).astype(np.int8).view(np.uint8)
    return np.concatenate(pieces, axis=-1).reshape(rows.shape[0], -1)
