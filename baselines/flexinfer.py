"""FlexInfer (arXiv 2503.03777): one device that keeps the same bytes of every layer and streams on.

Every layer keeps the same matrices, the smallest first, so that reads are spread evenly over a
token; the rest of each layer comes by direct reads through a ring of layer buffers, two layers
ahead of the one that is computed. With the same memory as `tpi_auto`, which reads a block ahead and
keeps one more matrix in some layers. Runs on the same blocks and runtime as the TPI engine, whose
FFN has gate and up as one matrix: they are kept together or not at all.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.contract.system import Streaming, System
from tpi_bench.engine.budget import Planner, Rung, within_memory
from tpi_bench.engine.placement import place_blocks
from tpi_bench.engine.plans import tensor_parallel

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class FlexInferSystem(System):
    """`system=flexinfer`. A device of unknown memory holds all its blocks."""

    name: str = setting("flexinfer", "how rows call it")
    ahead: int = setting(2, "layers that are read ahead of the one that is computed")

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

    def __post_init__(self) -> None:
        if isinstance(self.ahead, bool) or self.ahead < 0:
            raise ValueError(f"system.ahead={self.ahead} must be a number of layers of at least 0")

    @property
    def label(self) -> str:
        return "FlexInfer" if self.name == "flexinfer" else self.name

    @property
    def variant(self) -> str:
        return "" if self.ahead == 2 else f"ahead {self.ahead}"

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        if site.num_devices > 1:
            raise ValueError(
                f"testbed.num_devices={site.num_devices} with system={self.name}, which knows one "
                "device; set testbed.num_devices=1"
            )
        return tensor_parallel(config, site.proportions, site.group)

    def traffic(self, job: Job) -> Traffic:
        return Traffic()

    def streaming(self, job: Job, rank: int) -> Streaming:
        if math.isinf(job.free_of(rank)):
            return Streaming.of_all(job.blocks[rank])
        ring = functools.partial(LayerRing, num_slots=self.ahead + 1)
        return within_memory(job, rank, "balanced", 0, ring)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine.device_model import DeviceModel
        from tpi_bench.engine.drafters import drafter_of
        from tpi_bench.engine.generation import generate

        model = DeviceModel(rt, job)

        def forward(token_ids: list[int], position: int, num_back: int = 1) -> torch.Tensor:
            x = model.layers(model.embed(token_ids), position, lambda partial: partial)
            return model.logits(x, num_back)

        result = generate(rt, forward, job.request, output, drafter_of(rt, job))
        model.window.close()
        return result


class LayerRing(Planner):
    """Keeps a matrix in every layer or in none, and streams through slots of a layer each."""

    def __init__(
        self, blocks: Sequence[BlockFile], keep: str, num_rows: int, num_slots: int
    ) -> None:
        super().__init__(blocks, keep, num_rows)
        self._num_slots = num_slots

    def _most_of(self, rung: Rung, kept: list[int], room: int) -> int:
        whole = self._with(kept, rung)
        return len(rung) if self._fits(whole, room) else 0

    def _place(self, kept: Sequence[int], room: int) -> tuple[list[int], int]:
        """Layers in turns through the slots; the output head, if it is streamed, as one of them."""
        pairs = [
            (block.layer, block.nbytes - cut)
            for block, cut in zip(self._blocks, kept, strict=True)
            if block.kind != "input" and block.nbytes > cut
        ]
        layers = [[rest for _, rest in own] for _, own in itertools.groupby(pairs, lambda p: p[0])]
        places, area = place_blocks([sum(rests) for rests in layers], self._num_slots)
        found = []
        for place, rests in zip(places, layers, strict=True):
            found += [place + before for before in itertools.accumulate(rests[:-1], initial=0)]
        return found, area
