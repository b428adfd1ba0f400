"""The collective alone: what one allreduce costs on a network, without a model around it.

A "token" is one allreduce of a payload as decoding has it, (1, h), so the token latency of the row
is the allreduce's latency in steady use (TPI-LLM, figure 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tpi_bench import theory
from tpi_bench.collectives import allreduce_by_name
from tpi_bench.job import Job, Output
from tpi_bench.models import ModelConfig
from tpi_bench.window import WindowConfig
from tpi_bench.workload import Generation

if TYPE_CHECKING:
    from tpi_bench.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class AllreduceSystem:
    """`system=allreduce`. `workload.num_new_tokens` is how many are done in a row."""

    name: str = "allreduce"
    collective: str = "star"

    max_devices: ClassVar[int | None] = None
    reads_checkpoint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        allreduce_by_name(self.collective)

    def plan(self, config: ModelConfig, proportions: list[float]) -> None:
        """Nothing is owned."""

    def window_config(self) -> WindowConfig:
        return WindowConfig()

    def sync_steps(self, config: ModelConfig, num_devices: int) -> int:
        return theory.allreduce_steps(self.collective, num_devices)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        import torch

        from tpi_bench.generation import account_of
        from tpi_bench.runtime import TOKEN_KINDS

        allreduce = allreduce_by_name(self.collective)
        payload = torch.ones(1, job.config.hidden, dtype=getattr(torch, job.dtype))
        result = Generation(token_ids=[], request_ns=rt.now(), token_ns=[], account=[])
        before = account_of(rt)
        for _ in range(job.request.num_new_tokens):
            allreduce(rt, payload / rt.world_size)
            after = account_of(rt)
            result.token_ns.append(rt.now())
            result.token_ids.append(0)
            result.account.append({kind: after[kind] - before[kind] for kind in TOKEN_KINDS})
            before = after
        return result if rt.rank == 0 else None
