"""Pipeline (layer-wise model) parallelism: each device owns consecutive layers.

One request keeps one device busy at a time, and a token costs one message a device. Layers are
divided evenly or in given proportions, as in Petals, or by EdgeShard's planner, which also chooses
the devices (arXiv 2405.14371). Runs on the same blocks, windows and runtime as the TPI engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpi_bench import plans, theory
from tpi_bench.edgeshard import plan_stages
from tpi_bench.fabric import transfers_s
from tpi_bench.job import Job, Output
from tpi_bench.models import ModelConfig
from tpi_bench.system import EngineSystem
from tpi_bench.window import WindowConfig, parse_window
from tpi_bench.workload import Generation

if TYPE_CHECKING:
    import torch

    from tpi_bench.engine import DeviceModel
    from tpi_bench.runtime import Runtime

PLANNERS = ("proportional", "edgeshard")
_OPERATORS = 23  # of a layer in decoding: 14 in attention, 7 in the FFN, 2 residuals


@dataclass(frozen=True, kw_only=True)
class PipelineSystem(EngineSystem):
    """`system=pipeline`, and `edgeshard`. The window streams a device's own layers, as in TPI."""

    name: str = "pipeline"
    planner: str = "proportional"
    window: Any = "off"
    retain_every: int = 0
    resident_io: bool = False
    loading: str = "overlapped"

    def __post_init__(self) -> None:
        if self.planner not in PLANNERS:
            raise ValueError(
                f"system.planner={self.planner} is unknown; choose one of {', '.join(PLANNERS)}"
            )
        self.window_config()

    @property
    def needs_profiles(self) -> bool:
        """EdgeShard's planner wants to know what devices and links can do."""
        return self.planner == "edgeshard"

    def plan(self, config: ModelConfig, site: plans.Site) -> plans.Plan:
        shape = {
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "intermediate": config.intermediate,
        }
        if self.planner == "edgeshard":
            stages = self._stages(config, site)
            return plans.layer_chain(stages, num_devices=site.num_devices, **shape)
        return plans.layer_parallel(
            num_layers=config.num_layers, proportions=site.proportions, **shape
        )

    def _stages(self, config: ModelConfig, site: plans.Site) -> list[tuple[int, int, int]]:
        """Of EdgeShard. A layer costs its bytes over memory bandwidth, or streamed, over disk's."""
        weights = config.layer_parameters * site.bytes_per_value
        cache = 2 * config.num_kv_heads * config.head_dim * site.num_positions
        ends = config.vocab * config.hidden * (1 if config.tied_embeddings else 2)
        window = self.window_config()
        is_held = window.size is None and window.loading == "overlapped"
        layer_s = []
        for device in site.devices:
            rate = device.memory_bps if is_held else min(device.memory_bps, device.disk_bps)
            layer_s.append(weights / rate + _OPERATORS * device.op_overhead_us * 1e-6)
        rooms = [float("inf")] * site.num_devices
        if is_held and site.memory_bytes is not None:
            rooms = [float(room) for room in site.memory_bytes]
            rooms[0] -= ends * site.bytes_per_value
        num = config.num_layers
        stages, _ = plan_stages(
            [[seconds] * num for seconds in layer_s],
            [weights + cache * site.bytes_per_value] * num,
            rooms,
            _transfer_s(site, config.hidden * site.bytes_per_value),
        )
        return stages

    def window_config(self) -> WindowConfig:
        return parse_window(self.window, self.retain_every, self.resident_io, self.loading)

    def sync_steps(self, job: Job) -> int:
        assert job.plan is not None
        return theory.pipeline_steps(len(job.plan.chain))

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine import DeviceModel, Steps
        from tpi_bench.generation import generate

        assert job.plan is not None
        if rt.rank not in job.plan.chain:
            Steps(rt).next()  # idle: nothing comes but the end
            return None
        model = DeviceModel(
            rt,
            job.config,
            job.plan.shards[rt.rank],
            job.blocks[rt.rank],
            self.window_config(),
            job.request,
        )
        model.hold_buffers(min(1, len(job.plan.chain) - 1))
        if rt.rank:
            _run_stage(rt, model, job.plan.chain)
            return None
        first = _FirstStage(rt, model, job.plan.chain)
        result = generate(rt, first.forward, job.request, output.on_token, output.on_logits)
        first.close()
        return result


def _transfer_s(site: plans.Site, nbytes: int) -> list[list[float]]:
    """Seconds for a hidden state of one position from each device to each other."""
    overheads = [device.message_overhead_us * 1e-6 for device in site.devices]
    return [
        [seconds + overheads[a] + overheads[b] for b, seconds in enumerate(row)]
        for a, row in enumerate(transfers_s(site.network, site.num_devices, nbytes))
    ]


class _FirstStage:
    """The master: first layers, then the output head when the last device has answered."""

    def __init__(self, rt: Runtime, model: DeviceModel, chain: Sequence[int]) -> None:
        from tpi_bench.engine import Steps

        self._rt = rt
        self._model = model
        self._chain = chain
        self._steps = Steps(rt)

    def forward(self, token_ids: list[int], position: int) -> torch.Tensor:
        """New token ids -> logits (v,) of the last."""
        self._steps.announce(self._chain[1:], len(token_ids), position)
        x = self._model.layers(self._model.embed(token_ids), position, lambda partial: partial)
        if len(self._chain) > 1:
            self._rt.send(self._chain[1], x)
            x = self._model.receive_hidden(self._chain[-1], 1)  # the last position is all it needs
        return self._model.logits(x)

    def close(self) -> None:
        self._steps.announce(range(1, self._rt.world_size), 0, 0)
        self._model.window.close()


def _run_stage(rt: Runtime, model: DeviceModel, chain: Sequence[int]) -> None:
    """A later device: take the hidden state, run the own layers, pass it on."""
    from tpi_bench.engine import Steps

    steps = Steps(rt)
    place = chain.index(rt.rank)
    is_last = place == len(chain) - 1
    while True:
        num_new, position = steps.next()
        if not num_new:
            break
        x = model.receive_hidden(chain[place - 1], num_new)
        x = model.layers(x, position, lambda partial: partial)
        rt.send(0 if is_last else chain[place + 1], x[-1:] if is_last else x)
    model.window.close()
