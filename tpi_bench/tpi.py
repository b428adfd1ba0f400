"""The system under study: TPI-LLM's tensor parallelism with a choice of collective and window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpi_bench import plans, theory
from tpi_bench.collectives import allreduce_by_name, num_receive_buffers
from tpi_bench.job import Job, Output
from tpi_bench.models import ModelConfig
from tpi_bench.system import EngineSystem
from tpi_bench.window import WindowConfig, parse_window
from tpi_bench.workload import Generation

if TYPE_CHECKING:
    from tpi_bench.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class TpiSystem(EngineSystem):
    """`system=tpi`, and with other `loading` `mmap` and `blocking`. See `window.py`.

    `window` off holds all weights. On one device, with a window, it is what the paper calls
    Transformers with the memory scheduler (its table 3).
    """

    name: str = "tpi"
    collective: str = "star"
    window: Any = "off"
    retain_every: int = 0
    resident_io: bool = False
    loading: str = "overlapped"

    def __post_init__(self) -> None:
        allreduce_by_name(self.collective)
        self.window_config()

    def plan(self, config: ModelConfig, site: plans.Site) -> plans.Plan:
        return plans.tensor_parallel(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            intermediate=config.intermediate,
            proportions=site.proportions,
        )

    def window_config(self) -> WindowConfig:
        return parse_window(self.window, self.retain_every, self.resident_io, self.loading)

    def sync_steps(self, job: Job) -> int:
        return theory.tensor_parallel_steps(self.collective, job.num_devices, job.config.num_layers)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine import DeviceModel, TensorParallelMaster, run_worker
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
        model.hold_buffers(num_receive_buffers(self.collective, rt.world_size))
        allreduce = allreduce_by_name(self.collective)
        if rt.rank:
            run_worker(rt, model, allreduce)
            return None
        master = TensorParallelMaster(rt, model, allreduce)
        result = generate(rt, master.forward, job.request, output.on_token, output.on_logits)
        master.close()
        return result
