"""Pipeline (layer-wise model) parallelism: each device owns consecutive layers.

The way of Petals and EdgeShard (arXiv 2405.14371): one request keeps one device busy at a time,
and a token costs one message a device. Runs on the same blocks, windows and runtime as the TPI
engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpi_bench import plans, theory
from tpi_bench.job import Job, Output
from tpi_bench.models import ModelConfig
from tpi_bench.system import EngineSystem
from tpi_bench.window import WindowConfig, parse_window
from tpi_bench.workload import Generation

if TYPE_CHECKING:
    import torch

    from tpi_bench.engine import DeviceModel
    from tpi_bench.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class PipelineSystem(EngineSystem):
    """`system=pipeline`. The window streams a device's own layers, as in the TPI engine."""

    name: str = "pipeline"
    window: Any = "off"
    retain_every: int = 0
    resident_io: bool = False
    loading: str = "overlapped"

    def __post_init__(self) -> None:
        self.window_config()

    def plan(self, config: ModelConfig, site: plans.Site) -> plans.Plan:
        return plans.layer_parallel(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            intermediate=config.intermediate,
            proportions=site.proportions,
        )

    def window_config(self) -> WindowConfig:
        return parse_window(self.window, self.retain_every, self.resident_io, self.loading)

    def sync_steps(self, job: Job) -> int:
        return theory.pipeline_steps(job.num_devices)

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
        model.hold_buffers(min(1, rt.world_size - 1))
        if rt.rank:
            _run_stage(rt, model)
            return None
        first = _FirstStage(rt, model)
        result = generate(rt, first.forward, job.request, output.on_token, output.on_logits)
        first.close()
        return result


class _FirstStage:
    """The master: first layers, then the output head when the last device has answered."""

    def __init__(self, rt: Runtime, model: DeviceModel) -> None:
        from tpi_bench.engine import Steps

        self._rt = rt
        self._model = model
        self._steps = Steps(rt, model)

    def forward(self, token_ids: list[int], position: int) -> torch.Tensor:
        """New token ids -> logits (v,) of the last."""
        rt = self._rt
        self._steps.announce(range(1, rt.world_size), len(token_ids), position)
        x = self._model.layers(self._model.embed(token_ids), position, lambda partial: partial)
        if rt.world_size > 1:
            rt.send(1, x)
            x = self._steps.receive_hidden(rt.world_size - 1, 1)  # only the last position is needed
        return self._model.logits(x)

    def close(self) -> None:
        self._steps.announce(range(1, self._rt.world_size), 0, 0)
        self._model.window.close()


def _run_stage(rt: Runtime, model: DeviceModel) -> None:
    """A later device: take the hidden state, run the own layers, pass it on."""
    from tpi_bench.engine import Steps

    steps = Steps(rt, model)
    is_last = rt.rank == rt.world_size - 1
    while True:
        num_new, position = steps.next()
        if not num_new:
            break
        x = steps.receive_hidden(rt.rank - 1, num_new)
        x = model.layers(x, position, lambda partial: partial)
        rt.send(0 if is_last else rt.rank + 1, x[-1:] if is_last else x)
    model.window.close()
