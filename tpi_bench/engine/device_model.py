"""What rank programs share: a device's blocks in order, and how it is told of the next step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tpi_bench.contract.job import Job
from tpi_bench.contract.plan import Shard
from tpi_bench.contract.system import Streaming, System
from tpi_bench.engine.budget import activation_bytes, earlier_bytes, tile_bytes
from tpi_bench.engine.llama import (
    AttentionBlock,
    FeedForwardBlock,
    HeadMap,
    RotaryTable,
    embed,
    output_logits,
)
from tpi_bench.engine.window import WeightSource, weight_source
from tpi_bench.engine.wire import AS_COMPUTED, Wire

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import Runtime

Combine = Callable[[torch.Tensor], torch.Tensor]
LayerBlock = AttentionBlock | FeedForwardBlock


class DeviceModel:
    """One device's blocks of a job, with their KV caches and weights, in the order of a token.

    `streaming` is what the job's system says of itself, unless another one is given; `source` is
    what makes of it where weights come from.
    """

    def __init__(
        self,
        rt: Runtime,
        job: Job,
        streaming: Streaming | None = None,
        source: Callable[..., WeightSource] = weight_source,
    ) -> None:
        if job.plan is None:
            raise ValueError(
                f"system={getattr(job.program, 'name', job.program)} has no plan, so there are no "
                "blocks for a DeviceModel; its `plan` must return who owns what "
                "(tpi_bench/engine/plans.py)"
            )
        if streaming is None:
            assert isinstance(job.program, System)
            streaming = job.program.streaming(job, rt.rank)
        config, request, blocks = job.config, job.request, job.blocks[rt.rank]
        shards = job.plan.shards[rt.rank]
        self._rt = rt
        self.config = config
        self.dtype = getattr(torch, job.dtype)
        self._held = job.weights
        self._rotary = RotaryTable(config.rope, config.head_dim, request.length)
        self._num_cached = 0
        self.layer_blocks: list[tuple[int, LayerBlock]] = []
        maps: dict[Shard, HeadMap] = {}
        for index, shard in enumerate(shards):
            if shard.kind == "attn":
                heads = replace(shard, layer=-1)
                if heads not in maps:
                    maps[heads] = HeadMap(shard, config.group)
                attention = AttentionBlock(
                    config,
                    shard,
                    maps[heads],
                    self._rotary,
                    request.length,
                    self.dtype,
                    job.weights,
                )
                rt.hold("kv_cache", attention.cache.nbytes)
                self.layer_blocks.append((index, attention))
            elif shard.kind == "ffn":
                self.layer_blocks.append(
                    (index, FeedForwardBlock(config, shard, self.dtype, job.weights))
                )
        num_new = request.most_new
        num_back, itemsize = request.most_drafted + 1, self.dtype.itemsize
        rt.hold("activations", activation_bytes(config, shards, num_new, itemsize, num_back))
        rt.hold("earlier", earlier_bytes(job, rt.rank))
        rt.hold("tile", tile_bytes(job))
        self._output_index = len(shards) - 1
        self._payload_bytes = num_new * config.hidden * self.dtype.itemsize
        self.window = source(rt, blocks, streaming, num_new)

    def hold_buffers(self, num_payloads: int) -> None:
        """Enter what a device receives into at once, hidden states (T, h), in the ledger."""
        self._rt.hold("buffers", num_payloads * self._payload_bytes)

    def receive_hidden(self, src: int, num_new: int, wire: Wire = AS_COMPUTED) -> torch.Tensor:
        """A hidden state (T, h) from another device."""
        x = torch.empty(num_new, self.config.hidden, dtype=self.dtype)
        wire.receive(self._rt, src, x)
        return x

    def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Token ids -> (T, h). Master only."""
        weights, rows = self.window.look_up(0, token_ids)
        key = ("embed", len(token_ids), self.config.hidden, self.dtype, self._held)
        x = self._rt.compute(key, lambda: embed(rows, weights, self.dtype))
        self.window.release(0)
        return x

    def begin(self, num_new: int, position: int) -> None:
        """A step of so many positions, of which `position` is the first, is about to meet the KV
        caches: any number from 1 on, behind what was fed before, or over a part of it.

        Raises ValueError where there is a gap, or no room.
        """
        past, room = position + num_new, self._rotary.length
        if num_new < 1 or not 0 <= position <= self._num_cached or past > room:
            raise ValueError(
                f"a step of {num_new} positions from position {position} on: it must have at least "
                f"1, begin at 0 to {self._num_cached} (what the KV cache holds) and end within "
                f"{room} (prompt and answer)"
            )
        self._num_cached = past

    def layers(
        self,
        x: torch.Tensor,
        position: int,
        combine: Combine,
        combine_last: Combine | None = None,
    ) -> torch.Tensor:
        """Run the device's blocks; `combine` turns each partial sum (T, h) into the whole one, or
        `combine_last` that of the last block.

        x (T, h) is of positions `position` to `position` + T - 1; see `begin`.
        """
        self.begin(x.shape[0], position)
        x = self.through(self.layer_blocks[:-1], x, position, combine)
        return self.through(self.layer_blocks[-1:], x, position, combine_last or combine)

    def through(
        self,
        blocks: Sequence[tuple[int, LayerBlock]],
        x: torch.Tensor,
        position: int,
        combine: Combine,
    ) -> torch.Tensor:
        """Run some of the device's blocks, those that are next, in a step that has begun."""
        num_new = x.shape[0]
        residual = ("residual", num_new, self.config.hidden, self.dtype)
        for index, block in blocks:
            weights = self.window.acquire(index)
            partial = self._rt.compute(
                block.key(num_new, position),
                functools.partial(block, x, weights, position),
            )
            self.window.release(index)
            whole = combine(partial)
            if not isinstance(whole, torch.Tensor) or whole.shape != x.shape:
                found = tuple(getattr(whole, "shape", ())) or type(whole).__name__
                raise ValueError(
                    f"rank {self._rt.rank}: what adds up partial sums gave {found} where a tensor "
                    f"of shape {tuple(x.shape)} is due"
                )
            x = self._rt.compute(residual, functools.partial(torch.add, x, whole))
        return x

    def logits(self, x: torch.Tensor, num_back: int = 1) -> torch.Tensor:
        """(T, h) -> logits (v,) of the last position, or (n, v) of the last n. Master only."""
        weights = self.window.acquire(self._output_index)
        shape = (x.shape[0], self.config.hidden, self.config.vocab)
        key = ("head", *shape, self.dtype, self._held, *([num_back] if num_back > 1 else []))
        logits = self._rt.compute(
            key, lambda: output_logits(x[-num_back:], weights, self.config.rms_eps)
        )
        self.window.release(self._output_index)
        return logits[0] if num_back == 1 else logits


class Steps:
    """How the master tells the others about a step, before hidden states (T, h) follow.

    A step may begin before the end of what the KV caches hold: what was there is forgotten, as of a
    draft the tokens that were not right. `num_back` are the last positions of the step that the
    master wants the final hidden states of, where others hold them.
    """

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        self.num_back = 1
        # Real numbers even where tensors hold no data.
        self._header = torch.zeros(3, dtype=torch.int64, device="cpu")

    def announce(
        self, workers: Sequence[int], num_new: int, position: int, num_back: int = 1
    ) -> None:
        """Tell `workers` that `num_new` positions from `position` on are next; 0 is the end."""
        self._header[0], self._header[1], self._header[2] = num_new, position, num_back
        for worker in workers:
            self._rt.send(worker, self._header)

    def end(self) -> None:
        """Tell everyone that there is no next step."""
        self.announce(range(1, self._rt.world_size), 0, 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(number of new positions, first position) of each step, until the end."""
        while True:
            self._rt.recv(0, self._header)
            num_new, position, self.num_back = self._header.tolist()
            if not num_new:
                return
            yield num_new, position
