"""Jupiter's planner, as we rebuild it (arXiv 2504.08242): layers to devices, and a prompt's chunks.

A prompt of n positions passes S devices in c chunks, so that all work at once: in (c + S - 1) times
the slowest stage where chunks take alike. A dynamic programme over layers and devices finds the
stages for a number of chunks, another one over positions the chunks whose longest is shortest: a
later chunk has more positions to attend to, so it is shorter. Pure arithmetic.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from baselines.layer_planners import OPERATORS, Part
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.model import BYTES_PER_WEIGHT, ModelConfig

MOST_CHUNKS = 32
_GRID = 64  # places where a prompt may be cut


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a device takes for a chunk: a layer reads its weights, and computes by positions."""

    config: ModelConfig
    weights: str
    profile: DeviceProfile

    @functools.cached_property
    def _parameters(self) -> int:
        """Of a layer: they are counted once, as lengths are tried by the thousand."""
        return self.config.layer_parameters

    def layer_s(self, length: int, past: int) -> float:
        """Seconds of a layer for so many positions behind so many others."""
        config, profile = self.config, self.profile
        products = 2 * self._parameters * length
        seen = length * (past + (length + 1) / 2)
        attention = 4 * seen * config.num_heads * config.head_dim
        nbytes = self._parameters * BYTES_PER_WEIGHT[self.weights]
        rate = profile.rows_bps(self.weights) if length > 1 else profile.read_bps(self.weights)
        return (
            nbytes / rate
            + products / profile.flops_per_s(self.weights)
            + attention / profile.flops_per_s()
            + OPERATORS * profile.op_overhead_us * 1e-6
        )


def plan_layers(
    layer_s: Sequence[float], rooms: Sequence[float], num_layers: int, num_chunks: int, hop_s: float
) -> tuple[list[Part], float] | None:
    """Consecutive layers for each device, and the seconds of a prompt of so many alike chunks: the
    sum over the stages, and the slowest once more for every further chunk. The master has one layer
    at least, others may have none. None where memories are too small.
    """
    most = [int(min(num_layers, room + 1e-9)) for room in rooms]
    levels = {
        count * each for each, top in zip(layer_s, most, strict=True) for count in range(1, top + 1)
    }
    best: tuple[list[Part], float] | None = None
    for level in sorted(levels):
        if best is not None and num_chunks * level >= best[1]:
            break  # a slower stage costs more by itself
        caps = [
            min(top, int(level / each * (1 + 1e-12))) if each else top
            for each, top in zip(layer_s, most, strict=True)
        ]
        found = _least_sum(layer_s, caps, num_layers, hop_s)
        if found is None:
            continue
        counts, sum_s = found
        slowest = max(count * each for count, each in zip(counts, layer_s, strict=True))
        total_s = sum_s + (num_chunks - 1) * slowest
        if best is None or total_s < best[1] * (1 - 1e-12):
            parts = [(rank, count) for rank, count in enumerate(counts) if count]
            best = parts, total_s
    return best


def _least_sum(
    layer_s: Sequence[float], caps: Sequence[int], num_layers: int, hop_s: float
) -> tuple[list[int], float] | None:
    """Counts of layers, no more than `caps`, that pass in the least time with their hops."""
    before = np.full(num_layers + 1, np.inf)
    before[0] = 0.0
    choices = []
    for rank, (each, cap) in enumerate(zip(layer_s, caps, strict=True)):
        least = 0 if rank else 1
        options = [
            np.concatenate((np.full(count, np.inf), before[: num_layers + 1 - count]))
            + count * each
            + (hop_s if count and rank else 0.0)
            for count in range(least, cap + 1)
        ]
        if not options:
            return None
        table = np.array(options)
        choices.append(table.argmin(axis=0) + least)
        before = table.min(axis=0)
    if not np.isfinite(before[num_layers]):
        return None
    counts, left = [], num_layers
    for chosen in reversed(choices):
        counts.append(int(chosen[left]))
        left -= counts[-1]
    return counts[::-1], float(before[num_layers])


def equal_lengths(num_new: int, num_chunks: int) -> list[int]:
    """As even as can be; the first have what is over."""
    count = min(num_new, num_chunks)
    base, over = divmod(num_new, count)
    return [base + (number < over) for number in range(count)]


class PromptCuts:
    """Ways to cut so many positions at evenly spread places, so that the longest piece takes least.

    `chunk_s(length, past)` are a piece's seconds; what is past counts from the first of these
    positions.
    """

    def __init__(self, num_new: int, chunk_s: Callable[[int, int], float]) -> None:
        count = min(num_new, _GRID)
        self._places = [num_new * i // count for i in range(count + 1)]
        self._seconds = np.full((count + 1, count + 1), np.inf)
        for a, b in itertools.combinations(range(count + 1), 2):
            past = self._places[a]
            self._seconds[a, b] = chunk_s(self._places[b] - past, past)

    def lengths(self, num_chunks: int) -> list[int]:
        """Of so many pieces, or as many as there are places."""
        longest, came = self._seconds[0], []
        for _ in range(min(num_chunks, len(self._places) - 1) - 1):
            table = np.maximum(longest[:, None], self._seconds)
            came.append(table.argmin(axis=0))
            longest = table.min(axis=0)
        cuts = [len(self._places) - 1]
        for chosen in reversed(came):
            cuts.append(int(chosen[cuts[-1]]))
        ends = [0, *(self._places[cut] for cut in reversed(cuts))]
        return [b - a for a, b in itertools.pairwise(ends)]


def prompt_s(
    stages: Sequence[Callable[[int, int], float]],
    lengths: Sequence[int],
    hop_s: Callable[[int], float],
) -> float:
    """Seconds until the last chunk has passed all stages: each begins a chunk when it has come and
    the one before is done.
    """
    free = [0.0] * len(stages)
    past, ready = 0, 0.0
    for length in lengths:
        ready = 0.0
        for place, stage in enumerate(stages):
            begin = max(ready + (hop_s(length) if place else 0.0), free[place])
            ready = free[place] = begin + stage(length, past)
        past += length
    return ready
