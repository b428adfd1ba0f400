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
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines.galaxy_shares import plan_shares
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Plan, Range, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.system import System
from tpi_bench.engine.plans import tensor_parallel

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime
    from tpi_bench.engine.device_model import DeviceModel, LayerBlock
    from tpi_bench.engine.llama import Weights


@dataclass(frozen=True, kw_only=True)
class GalaxySystem(System):
    """`system=galaxy`. Everything is held in memory: Galaxy knows no offloading."""

    name: str = "galaxy"

    @property
    def label(self) -> str:
        return "Galaxy" if self.name == "galaxy" else self.name

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        return tensor_parallel(config, plan_shares(config, site))

    def sync_steps(self, job: Job) -> int:
        return galaxy_steps(job.num_devices, job.config.num_layers)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine.device_model import DeviceModel
        from tpi_bench.engine.generation import generate

        model = DeviceModel(rt, job)
        model.hold_buffers(2 * min(1, rt.world_size - 1))  # the gathered tiles, and a partial sum
        if rt.rank:
            _run_worker(rt, model)
            return None
        master = _Master(rt, model)
        result = generate(rt, master.forward, job.request, output)
        master.close()
        return result


class _Master:
    """Rank 0: gives each device the new positions that it connects, takes the last one back."""

    def __init__(self, rt: Runtime, model: DeviceModel) -> None:
        from tpi_bench.engine.device_model import Steps

        self._rt = rt
        self._model = model
        self._ring = _Ring(rt, model)
        self._steps = Steps(rt)
        self._workers = range(1, rt.world_size)

    def forward(self, token_ids: list[int], position: int) -> torch.Tensor:
        """New token ids -> logits (v,) of the last."""
        num_new = len(token_ids)
        rows = split_positions(num_new, self._rt.world_size)
        x = self._model.embed(token_ids)
        self._steps.announce(self._workers, num_new, position)
        for worker in self._workers:
            if rows[worker][0] < num_new:
                self._rt.send(worker, x[slice(*rows[worker])])
        x = self._ring.layers(x[slice(*rows[0])], rows, position)
        owner = _owner_of_last(rows)
        if owner:
            x = self._model.receive_hidden(owner, 1)
        return self._model.logits(x)

    def close(self) -> None:
        self._steps.end()
        self._model.window.close()


def _run_worker(rt: Runtime, model: DeviceModel) -> None:
    """Ranks above 0: their rows in, through all layers, the last position back to the master."""
    from tpi_bench.engine.device_model import Steps

    ring = _Ring(rt, model)
    for num_new, position in Steps(rt):
        rows = split_positions(num_new, rt.world_size)
        x = ring.layers(ring.receive(0, rows[rt.rank]), rows, position)
        if rt.rank == _owner_of_last(rows):
            rt.send(0, x[-1:].contiguous())
    model.window.close()


class _Ring:
    """A device's blocks between its neighbours.

    `rows[rank]` are the new positions that a device connects (see `split_positions`); a tile is the
    hidden states of one device's rows (t, h).
    """

    def __init__(self, rt: Runtime, model: DeviceModel) -> None:
        self._rt = rt
        self._model = model
        self._next = (rt.rank + 1) % rt.world_size
        self._previous = (rt.rank - 1) % rt.world_size

    def receive(self, src: int, rows: Range) -> torch.Tensor:
        """The tile of these rows; where there are none, nothing is sent."""
        first, last = rows
        return self._model.receive_hidden(src, last - first) if last > first else self._empty()

    def _empty(self) -> torch.Tensor:
        import torch

        return torch.empty(0, self._model.config.hidden, dtype=self._model.dtype)

    def layers(self, x: torch.Tensor, rows: list[Range], position: int) -> torch.Tensor:
        """The own tile through all blocks."""
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
        self, block: LayerBlock, weights: Weights, x: torch.Tensor, rows: list[Range]
    ) -> torch.Tensor:
        """All-gather: a tile of normed rows goes on while its product is computed."""
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
                tile = self.receive(self._previous, rows[(owner - 1) % size])
        parts = [part for part, (first, last) in zip(entered, rows, strict=True) if last > first]
        if len(parts) == 1:
            return parts[0]
        key = ("join", sum(part.shape[0] for part in parts), parts[0].shape[1], len(parts))
        return self._rt.compute(key, lambda: torch.cat(parts))

    def _reduce(
        self, block: LayerBlock, weights: Weights, mixed: torch.Tensor, rows: list[Range]
    ) -> torch.Tensor:
        """Reduce-scatter: a tile's product is computed while its sum is on the way.

        The tile of rank c is summed from rank c + 1 round to c, in that order always. The own one
        is the last, and what is returned.
        """
        size, rank = self._rt.world_size, self._rt.rank
        partial = self._empty()
        for step in range(size):
            first, last = rows[(rank - 1 - step) % size]
            if last == first:
                partial = self._empty()
                continue
            key = ("leave", *block.key(last - first, 0))
            product = functools.partial(block.leave, mixed[first:last], weights)
            partial = self._rt.compute(key, product)
            if step:
                received = self.receive(self._previous, (first, last))
                key = ("reduce", 1, partial.numel(), partial.dtype)
                self._rt.compute(key, functools.partial(partial.add_, received))
            if step < size - 1:
                self._rt.send(self._next, partial)
        return partial


def split_positions(num_new: int, num_devices: int) -> list[Range]:
    """Consecutive positions a device, as even as can be; the first devices get what is over."""
    base, over = divmod(num_new, num_devices)
    ends = list(itertools.accumulate(base + (rank < over) for rank in range(num_devices)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _owner_of_last(rows: list[Range]) -> int:
    """Who holds the last of the new positions."""
    return max(rank for rank, (first, last) in enumerate(rows) if last > first)


def galaxy_steps(num_devices: int, num_layers: int) -> int:
    """One-way latencies of one token: one round of the ring a block.

    A new position is one tile, of the master. Its all-gather goes round in N - 1 steps, and so does
    the sum back to it; but each device adds its part as soon as the tile has passed, right behind
    it, so that both take N steps together.
    """
    return 2 * num_layers * num_devices if num_devices > 1 else 0
