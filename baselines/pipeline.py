"""Pipeline (layer-wise model) parallelism: each device owns consecutive layers.

One request keeps one device busy at a time, and a token costs one message a device. Layers are
divided by one of the planners of `layer_planners.py`: evenly or in given proportions, or as
EdgeShard, Parallax, exo or prima.cpp do. Runs on the same blocks, windows and runtime as TPI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baselines.layer_planners import OF_PROFILES, PLANNERS, Layers, check_planner, stages_of
from baselines.stages import pipeline_steps, run_stages
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.engine import plans
from tpi_bench.engine.streaming import WindowedSystem
from tpi_bench.engine.wire import check_wire, hidden_bytes, wire_setting, wire_words

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class PipelineSystem(WindowedSystem):
    """`system=pipeline`, and `edgeshard`. The window streams a device's own layers, as in TPI."""

    name: str = setting("pipeline", "how rows call it")
    planner: str = setting(
        "proportional",
        "who gets how many layers: proportional: even, or by testbed.proportions; memory: as exo; "
        "waterfill: as Parallax; edgeshard and halda (prima.cpp) choose devices too",
        tuple(PLANNERS),
    )
    wire: str = wire_setting()

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

    def __post_init__(self) -> None:
        check_wire(self.wire)
        check_planner(self.planner)
        super().__post_init__()

    @property
    def label(self) -> str:
        return "EdgeShard" if self.name == "edgeshard" else self.name

    @property
    def variant(self) -> str:
        return f"{super().variant} {wire_words(self.wire)}".strip()

    @property
    def needs_profiles(self) -> bool:
        """Some planners want to know what devices can do."""
        return self.planner in OF_PROFILES

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        if self.planner == "proportional":
            return plans.layer_parallel(config, site.proportions)
        layers = Layers(
            config=config,
            site=site,
            wire=self.wire,
            streams=not self.window_config.holds_all,
            num_layers=config.num_layers,
        )
        stages = stages_of(PLANNERS[self.planner](layers))
        return plans.layer_chain(config, stages, site.num_devices)

    def traffic(self, job: Job) -> Traffic:
        assert job.plan is not None
        steps = pipeline_steps(len(job.plan.chain))
        nbytes = steps * hidden_bytes(job, self.wire)
        return Traffic(latencies=steps, serial_bytes=nbytes, all_bytes=nbytes)

    def num_buffers(self, job: Job) -> int:
        return 1

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        return run_stages(rt, job, self.wire, output)
