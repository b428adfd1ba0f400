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
from typing import TYPE_CHECKING, ClassVar

from baselines.galaxy_shares import plan_shares
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Range, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.contract.system import System
from tpi_bench.engine.plans import tensor_parallel
from tpi_bench.engine.wire import Wire, check_wire, hidden_bytes, wire_setting, wire_words

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime
    from tpi_bench.engine.device_model import DeviceModel, LayerBlock
    from tpi_bench.engine.llama import Weights


@dataclass(frozen=True, kw_only=True)
class GalaxySystem(System):
    """`system=galaxy`. Everything is held in memory: Galaxy knows no offloading."""

    name: str = setting("galaxy", "how rows call it")
    wire: str = wire_setting()

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

    def __post_init__(self) -> None:
        check_wire(self.wire)

    @property
    def label(self) -> str:
        return "Galaxy" if self.name == "galaxy" else self.name

    @property
    def variant(self) -> str:
        return wire_words(self.wire)

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        return tensor_parallel(config, plan_shares(config, site), site.group)

    def traffic(self, job: Job) -> Traffic:
        """Each message is the one new position's, whole."""
        steps = galaxy_steps(job.num_devices, job.config.num_layers)
        nbytes = hidden_bytes(job, self.wire)
        sends = 4 * job.config.num_layers * (job.num_devices - 1)
        return Traffic(latencies=steps, serial_bytes=steps * nbytes, all_bytes=sends * nbytes)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine.device_model import DeviceModel
        from tpi_bench.engine.drafters import drafter_of
        from tpi_bench.engine.generation import generate
        from tpi_bench.engine.packing import make_wire

        model = DeviceModel(rt, job)
        model.hold_buffers(2 * min(1, rt.world_size - 1))  # the gathered tiles, and a partial sum
        most_rows = split_positions(job.request.most_new, rt.world_size)[0][1]
        wire = make_wire(rt, self.wire, model.dtype, most_rows * job.config.hidden)
        if rt.rank:
            _run_worker(rt, model, wire)
            return None
        master = _Master(rt, model, wire)
        result = generate(rt, master.forward, job.request, output, drafter_of(rt, job))
        master.close()
        return result


class _Master:
    """Rank 0: gives each device the new positions that it connects, takes the last ones back."""

    def __init__(self, rt: Runtime, model: DeviceModel, wire: Wire) -> None:
        from tpi_bench.engine.device_model import Steps

        self._rt = rt
        self._model = model
        self._wire = wire
        self._ring = _Ring(rt, model, wire)
        self._steps = Steps(rt)
        self._workers = range(1, rt.world_size)

    def forward(self, token_ids: list[int], position: int, num_back: int = 1) -> torch.Tensor:
        """New token ids -> logits (v,) of the last, or (n, v) of the last n."""
        import torch

        num_new = len(token_ids)
        rows = split_positions(num_new, self._rt.world_size)
        x = self._model.embed(token_ids)
        self._steps.announce(self._workers, num_new, position, num_back)
        for worker in self._workers:
            if rows[worker][0] < num_new:
                self._rt.send(worker, self._wire.pack(self._rt, x[slice(*rows[worker])]))
        x = self._ring.layers(x[slice(*rows[0])], rows, position)
        parts = [x[_first_back(rows[0], num_new, num_back) :]]
        for worker in self._workers:
            count = rows[worker][1] - rows[worker][0] - _first_back(rows[worker], num_new, num_back)
            if count:
                parts.append(self._model.receive_hidden(worker, count, self._wire))
        parts = [part for part in parts if part.shape[0]]
        return self._model.logits(parts[0] if len(parts) == 1 else torch.cat(parts), num_back)

    def close(self) -> None:
        self._steps.end()
        self._model.window.close()


def _run_worker(rt: Runtime, model: DeviceModel, wire: Wire) -> None:
    """Ranks above 0: their rows in, through all layers, the last positions back to the master."""
    from tpi_bench.engine.device_model import Steps

    ring = _Ring(rt, model, wire)
    steps = Steps(rt)
    for num_new, position in steps:
        rows = split_positions(num_new, rt.world_size)
        first, last = rows[rt.rank]
        x = ring.new_tile(0) if first == last else model.receive_hidden(0, last - first, wire)
        x = ring.layers(x, rows, position)
        back = x[_first_back(rows[rt.rank], num_new, steps.num_back) :]
        if back.shape[0]:
            rt.send(0, wire.pack(rt, back.contiguous()))
    model.window.close()


class _Ring:
    """A device's blocks between its neighbours.

    `rows[rank]` are the new positions that a device connects (see `split_positions`); a tile is the
    hidden states of one device's rows (t, h). A gathered tile is packed once, by its owner, and its
    bytes go round; a tile that is being summed is packed at each hop.
    """

    def __init__(self, rt: Runtime, model: DeviceModel, wire: Wire) -> None:
        self._rt = rt
        self._model = model
        self._wire = wire
        self._next = (rt.rank + 1) % rt.world_size
        self._previous = (rt.rank - 1) % rt.world_size

    def new_tile(self, num_rows: int) -> torch.Tensor:
        """For so many rows; an empty one is not sent."""
        import torch

        return torch.empty(num_rows, self._model.config.hidden, dtype=self._model.dtype)

    def layers(self, x: torch.Tensor, rows: list[Range], position: int) -> torch.Tensor:
        """The own tile through all blocks."""
        import torch

        self._model.begin(rows[-1][1], position)
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
        message = self._wire.pack(self._rt, tile)
        for step in range(size):
            owner = (rank - step) % size
            count = tile.shape[0]
            if step < size - 1 and count:
                self._rt.send(self._next, message)
            self._wire.unpack(self._rt, message, tile)
            if count:
                key = ("enter", *block.key(count, 0))
                product = functools.partial(block.enter, tile, weights)
                entered[owner] = self._rt.compute(key, product)
            if step < size - 1:
                first, last = rows[(owner - 1) % size]
                tile = self.new_tile(last - first)
                message = self._wire.landing(tile)
                if last > first:
                    self._rt.recv(self._previous, message)
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
        partial = self.new_tile(0)
        for step in range(size):
            first, last = rows[(rank - 1 - step) % size]
            if last == first:
                partial = self.new_tile(0)
                continue
            key = ("leave", *block.key(last - first, 0))
            product = functools.partial(block.leave, mixed[first:last], weights)
            partial = self._rt.compute(key, product)
            if step:
                received = self._wire.room(partial)
                self._rt.recv(self._previous, received)
                self._wire.add(self._rt, received, partial)
            if step < size - 1:
                self._rt.send(self._next, self._wire.pack(self._rt, partial))
        return partial


def split_positions(num_new: int, num_devices: int) -> list[Range]:
    """Consecutive positions a device, as even as can be; the first devices get what is over."""
    base, over = divmod(num_new, num_devices)
    ends = list(itertools.accumulate(base + (rank < over) for rank in range(num_devices)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _first_back(own: Range, num_new: int, num_back: int) -> int:
    """The first of a device's rows that is among the last `num_back` of the new positions."""
    first, last = own
    return min(last - first, max(0, num_new - num_back - first))


def galaxy_steps(num_devices: int, num_layers: int) -> int:
    """One-way latencies of one token: one round of the ring a block.

    A new position is one tile, of the master. Its all-gather goes round in N - 1 steps, and so does
    the sum back to it; but each device adds its part as soon as the tile has passed, right behind
    it, so that both take N steps together.
    """
    return 2 * num_layers * num_devices if num_devices > 1 else 0
