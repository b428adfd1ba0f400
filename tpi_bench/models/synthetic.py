"""Checkpoints of a shape alone: values are made from a seed, the same whatever rows are asked for.

`SyntheticModel` of `sources.py` gives them to the sharder.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import TYPE_CHECKING

from tpi_bench.contract.model import Checkpoint, ModelConfig

if TYPE_CHECKING:
    import torch


class SyntheticCheckpoint(Checkpoint):
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
