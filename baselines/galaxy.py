"""Galaxy (arXiv 2405.17245): tensor and sequence parallelism in turns, ring steps behind products.

Attention and MLP are divided by heads and columns; what connects them (residual and norm) by
positions. So each half of a layer is an all-gather of positions, the block, and a reduce-scatter,
both on a ring of N - 1 steps. Tiles overlap: while a tile travels to the next device, the product
of the tile that is here already is computed, on the way in and on the way out. With one new
position (decoding) there is nothing to divide and nothing to overlap; the ring's latency stays.
Written from the paper; runs on the same blocks and runtime as the TPI engine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpi_bench import plans, theory
from tpi_bench.job import Job, Output
from tpi_bench.models import ModelConfig
from tpi_bench.system import EngineSystem
from tpi_bench.workload import Generation

if TYPE_CHECKING:
    import torch

    from tpi_bench.engine import DeviceModel, LayerBlock
    from tpi_bench.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class GalaxySystem(EngineSystem):
    """`system=galaxy`. Everything is held in memory: Galaxy knows no offloading."""

    name: str = "galaxy"

    def plan(self, config: ModelConfig, site: plans.Site) -> plans.Plan:
        """Heads and columns by what devices can do and hold (Galaxy, section 3, planning)."""
        cache = 2 * config.num_kv_heads * config.head_dim * site.num_positions
        ends = config.vocab * config.hidden * (1 if config.tied_embeddings else 2)
        shares = balanced_shares(
            capacities(site),
            (config.layer_parameters + cache) * config.num_layers * site.bytes_per_value,
            ends * site.bytes_per_value,
            site.memory_bytes,
        )
        return plans.tensor_parallel(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            intermediate=config.intermediate,
            proportions=shares,
        )

    def sync_steps(self, job: Job) -> int:
        return theory.galaxy_steps(job.num_devices, job.config.num_layers)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine import DeviceModel
        from tpi_bench.generation import generate

        assert job.plan is not None
        model = DeviceModel(
            rt,
            job.config,
            job.plan.shards[rt.rank],
            job.blocks[rt.rank],
            self.window_config(),
            job.request,
        )
        model.hold_buffers(2 * min(1, rt.world_size - 1))  # the gathered tiles, and a partial sum
        device = _Device(rt, model)
        if rt.rank:
            device.work()
            return None
        result = generate(rt, device.forward, job.request, output.on_token, output.on_logits)
        device.close()
        return result


def capacities(site: plans.Site) -> list[float]:
    """What each device computes, relative to others: as given, or as its profile says."""
    if site.devices and len(set(site.proportions)) == 1:
        return [device.strength for device in site.devices]
    return list(site.proportions)


def balanced_shares(
    capacity: Sequence[float],
    layer_bytes: float,
    master_bytes: float,
    memory_bytes: Sequence[int] | None,
) -> list[float]:
    """Shares of all layers in proportion to capacity; what does not fit goes to the others.

    They sum up to 1. `master_bytes` is what rank 0 holds besides. Where memory is short everywhere
    the rest is spread as if it were not: the devices will say so.
    """
    rooms = [float("inf")] * len(capacity)
    if memory_bytes is not None:
        ends = [master_bytes, *[0.0] * (len(capacity) - 1)]
        rooms = [max(0.0, m - e) / layer_bytes for m, e in zip(memory_bytes, ends, strict=True)]
    shares = [0.0] * len(capacity)
    free = list(range(len(capacity)))
    left = 1.0
    while left > 1e-12 and free:
        total = sum(capacity[i] for i in free)
        full = [i for i in free if shares[i] + left * capacity[i] / total > rooms[i]]
        if not full:
            for i in free:
                shares[i] += left * capacity[i] / total
            return shares
        for i in full:
            left -= rooms[i] - shares[i]
            shares[i] = rooms[i]
        free = [i for i in free if i not in full]
    return [share + left * c / sum(capacity) for share, c in zip(shares, capacity, strict=True)]


class _Device:
    """One rank. Its rows are the new positions that it connects: `split_positions`."""

    def __init__(self, rt: Runtime, model: DeviceModel) -> None:
        from tpi_bench.engine import Steps

        self._rt = rt
        self._model = model
        self._steps = Steps(rt)
        self._next = (rt.rank + 1) % rt.world_size
        self._previous = (rt.rank - 1) % rt.world_size

    def forward(self, token_ids: list[int], position: int) -> torch.Tensor:
        """New token ids -> logits (v,) of the last. The master's part of a step."""
        rt, num_new = self._rt, len(token_ids)
        rows = plans.split_positions(num_new, rt.world_size)
        x = self._model.embed(token_ids)
        self._steps.announce(range(1, rt.world_size), num_new, position)
        for worker in range(1, rt.world_size):
            if rows[worker][0] < num_new:
                rt.send(worker, x[slice(*rows[worker])])
        x = self._layers(x[slice(*rows[0])], rows, position)
        owner = _owner_of_last(rows)
        if owner:
            x = self._model.receive_hidden(owner, 1)
        return self._model.logits(x)

    def work(self) -> None:
        """A worker: its rows in, through all layers, the last position back to the master."""
        rt = self._rt
        while True:
            num_new, position = self._steps.next()
            if not num_new:
                break
            rows = plans.split_positions(num_new, rt.world_size)
            first, last = rows[rt.rank]
            x = self._model.receive_hidden(0, last - first) if last > first else self._empty()
            x = self._layers(x, rows, position)
            if rt.rank == _owner_of_last(rows):
                rt.send(0, x[-1:].contiguous())
        self._model.window.close()

    def close(self) -> None:
        self._steps.announce(range(1, self._rt.world_size), 0, 0)
        self._model.window.close()

    def _empty(self) -> torch.Tensor:
        import torch

        return torch.empty(0, self._model.config.hidden, dtype=self._model.dtype)

    def _layers(self, x: torch.Tensor, rows: list[plans.Range], position: int) -> torch.Tensor:
        """The own rows (t, h) through all blocks."""
        import torch

        for index, block in self._model.layer_blocks:
            weights = self._model.window.acquire(index)
            entered = self._gather(block, weights, x, rows)
            mixed = self._rt.compute(
                ("mix", *block.key(entered.shape[0], position)),
                functools.partial(block.mix, entered, position),
            )
            whole = self._reduce(block, weights, mixed, rows)
            self._model.window.release(index)
            if x.shape[0]:
                key = ("residual", x.shape[0], self._model.config.hidden, self._model.dtype)
                x = self._rt.compute(key, functools.partial(torch.add, x, whole))
        return x

    def _gather(
        self, block: LayerBlock, weights: dict, x: torch.Tensor, rows: list[plans.Range]
    ) -> torch.Tensor:
        """All-gather on the ring: a tile of normed rows goes on while its product is computed."""
        import torch

        size, rank = self._rt.world_size, self._rt.rank
        entered: list[torch.Tensor] = [x] * size
        tile = x
        if x.shape[0]:
            key = ("norm", *block.key(x.shape[0], 0))
            tile = self._rt.compute(key, functools.partial(block.norm, x, weights))
        for step in range(size):
            owner = (rank - step) % size
            count = tile.shape[0]
            if step < size - 1 and count:
                self._rt.send(self._next, tile)
            if count:
                key = ("enter", *block.key(count, 0))
                product = functools.partial(block.enter, tile, weights)
                entered[owner] = self._rt.compute(key, product)
            if step < size - 1:
                first, last = rows[(owner - 1) % size]
                tile = self._empty()
                if last > first:
                    tile = self._model.receive_hidden(self._previous, last - first)
        parts = [part for part, (first, last) in zip(entered, rows, strict=True) if last > first]
        if len(parts) == 1:
            return parts[0]
        key = ("join", sum(part.shape[0] for part in parts), parts[0].shape[1], len(parts))
        return self._rt.compute(key, lambda: torch.cat(parts))

    def _reduce(
        self, block: LayerBlock, weights: dict, mixed: torch.Tensor, rows: list[plans.Range]
    ) -> torch.Tensor:
        """Reduce-scatter on the ring: a tile's product is computed while its sum is on the way.

        The tile of rank c is summed from rank c + 1 round to c, in that order always.
        """
        size, rank = self._rt.world_size, self._rt.rank
        partial = self._empty()
        for step in range(size):
            first, last = rows[(rank - 1 - step) % size]
            count = last - first
            if not count:
                partial = self._empty()
                continue
            key = ("leave", *block.key(count, 0))
            product = functools.partial(block.leave, mixed[first:last], weights)
            partial = self._rt.compute(key, product)
            if step:
                received = self._model.receive_hidden(self._previous, count)
                key = ("reduce", 1, partial.numel(), partial.dtype)
                self._rt.compute(key, functools.partial(partial.add_, received))
            if step < size - 1:
                self._rt.send(self._next, partial)
        return partial


def _owner_of_last(rows: list[plans.Range]) -> int:
    """Who holds the last of the new positions."""
    return max(rank for rank, (first, last) in enumerate(rows) if last > first)
