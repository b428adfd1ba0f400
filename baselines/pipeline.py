"""Pipeline (layer-wise model) parallelism: each device owns consecutive layers.

One request keeps one device busy at a time, and a token costs one message a device. Layers are
divided evenly or in given proportions, as in Petals, or by EdgeShard's planner, which also chooses
the devices (arXiv 2405.14371). Runs on the same blocks, windows and runtime as the TPI engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baselines.edgeshard import Stage, plan_stages
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.engine import plans
from tpi_bench.engine.streaming import WindowedSystem
from tpi_bench.engine.wire import (
    AS_COMPUTED,
    Wire,
    check_wire,
    hidden_bytes,
    wire_bytes,
    wire_setting,
    wire_words,
)

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime
    from tpi_bench.engine.device_model import DeviceModel

PLANNERS = ("proportional", "edgeshard")
_OPERATORS = 23  # of a layer in decoding: 14 in attention, 7 in the FFN, 2 residuals


@dataclass(frozen=True, kw_only=True)
class PipelineSystem(WindowedSystem):
    """`system=pipeline`, and `edgeshard`. The window streams a device's own layers, as in TPI."""

    name: str = setting("pipeline", "how rows call it")
    planner: str = setting(
        "proportional",
        "proportional: layers even or by testbed.proportions; edgeshard chooses devices too",
        PLANNERS,
    )
    wire: str = wire_setting()

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

    def __post_init__(self) -> None:
        check_wire(self.wire)
        if self.planner not in PLANNERS:
            raise ValueError(
                f"system.planner={self.planner} is unknown; choose one of {', '.join(PLANNERS)}"
            )
        super().__post_init__()

    @property
    def label(self) -> str:
        return "EdgeShard" if self.name == "edgeshard" else self.name

    @property
    def variant(self) -> str:
        return f"{super().variant} {wire_words(self.wire)}".strip()

    @property
    def needs_profiles(self) -> bool:
        """EdgeShard's planner wants to know what devices and links can do."""
        return self.planner == "edgeshard"

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        if self.planner == "edgeshard":
            return plans.layer_chain(config, self._stages(config, site), site.num_devices)
        return plans.layer_parallel(config, site.proportions)

    def _stages(self, config: ModelConfig, site: Site) -> list[Stage]:
        """Of EdgeShard. A layer costs its bytes over memory bandwidth, or streamed, over disk's."""
        weights = round(config.layer_parameters * site.bytes_per_weight)
        cache = config.cache_values(site.num_positions)
        window = self.window_config
        is_held = window.holds_all
        layer_s = []
        for profile in site.profiles:
            rate = profile.read_bps(site.weights)
            if not is_held:
                rate = min(rate, profile.disk_bps)
            layer_s.append(weights / rate + _OPERATORS * profile.op_overhead_us * 1e-6)
        rooms = [float("inf")] * site.num_devices
        if is_held and site.memory_bytes is not None:
            rooms = [float(room) for room in site.memory_bytes]
            rooms[0] -= config.end_parameters * site.bytes_per_weight
        num = config.num_layers
        stages, _ = plan_stages(
            [[seconds] * num for seconds in layer_s],
            [weights + cache * site.bytes_per_value] * num,
            rooms,
            _moves_s(site, wire_bytes(self.wire, config.hidden, site.bytes_per_value)),
        )
        return stages

    def traffic(self, job: Job) -> Traffic:
        assert job.plan is not None
        steps = pipeline_steps(len(job.plan.chain))
        nbytes = steps * hidden_bytes(job, self.wire)
        return Traffic(latencies=steps, serial_bytes=nbytes, all_bytes=nbytes)

    def num_buffers(self, job: Job) -> int:
        return 1

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine.device_model import DeviceModel, Steps
        from tpi_bench.engine.drafters import drafter_of
        from tpi_bench.engine.generation import generate
        from tpi_bench.engine.packing import make_wire

        assert job.plan is not None
        chain = job.plan.chain
        if rt.rank not in chain:
            next(iter(Steps(rt)), None)  # idle: nothing comes but the end
            return None
        model = DeviceModel(rt, job)
        most_values = job.request.most_new * job.config.hidden
        is_alone = len(chain) == 1
        wire = make_wire(rt, "auto" if is_alone else self.wire, model.dtype, most_values)
        if wire is AS_COMPUTED:
            model.hold_buffers(0 if is_alone else 1)
        if rt.rank:
            _run_stage(rt, model, chain, wire)
            return None
        first = _FirstStage(rt, model, chain, wire)
        result = generate(rt, first.forward, job.request, output, drafter_of(rt, job))
        first.close()
        return result


def _moves_s(site: Site, nbytes: int) -> list[list[float]]:
    """Seconds for a message from each device to each other: on the links, and in both devices."""
    assert site.transfers_s is not None
    overheads = [profile.message_overhead_us * 1e-6 for profile in site.profiles]
    return [
        [seconds + overheads[a] + overheads[b] for b, seconds in enumerate(row)]
        for a, row in enumerate(site.transfers_s(nbytes))
    ]


class _FirstStage:
    """The master: first layers, then the output head when the last device has answered."""

    def __init__(self, rt: Runtime, model: DeviceModel, chain: Sequence[int], wire: Wire) -> None:
        from tpi_bench.engine.device_model import Steps

        self._rt = rt
        self._wire = wire
        self._model = model
        self._chain = chain
        self._steps = Steps(rt)

    def forward(self, token_ids: list[int], position: int, num_back: int = 1) -> torch.Tensor:
        """New token ids -> logits (v,) of the last, or (n, v) of the last n."""
        self._steps.announce(self._chain[1:], len(token_ids), position, num_back)
        x = self._model.layers(self._model.embed(token_ids), position, lambda partial: partial)
        if len(self._chain) > 1:
            self._rt.send(self._chain[1], self._wire.pack(self._rt, x))
            last = self._chain[-1]
            x = self._model.receive_hidden(last, num_back, self._wire)
        return self._model.logits(x, num_back)

    def close(self) -> None:
        self._steps.end()
        self._model.window.close()


def _run_stage(rt: Runtime, model: DeviceModel, chain: Sequence[int], wire: Wire) -> None:
    """A later device: take the hidden state, run the own layers, pass it on."""
    from tpi_bench.engine.device_model import Steps

    place = chain.index(rt.rank)
    is_last = place == len(chain) - 1
    steps = Steps(rt)
    for num_new, position in steps:
        x = model.receive_hidden(chain[place - 1], num_new, wire)
        x = model.layers(x, position, lambda partial: partial)
        following, x = (0, x[-steps.num_back :]) if is_last else (chain[place + 1], x)
        rt.send(following, wire.pack(rt, x))
    model.window.close()


def pipeline_steps(num_devices: int) -> int:
    """One-way latencies of one token: through every device and back to the master."""
    return num_devices if num_devices > 1 else 0
