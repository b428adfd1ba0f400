"""distributed-llama (b4rtaz): tensor parallelism with an all-to-all of quantised partial sums.

Each rank packs its partial sum to 8 bits in groups of 32, sends it to every other, and adds all of
them, its own packed one too, so that ranks agree to the bit without a broadcast. That is TPI's
engine with `collective=direct` and `wire=q8`; what is here besides are the two ways in which the
program (version 0.16) differs from that: it syncs the positions of a prompt one by one, and it runs
on 2^n devices alone. Its output head is divided over all devices; here the master has it whole.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.setting import setting
from tpi_bench.engine.collectives import Allreduce, Collective
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.engine.wire import AS_COMPUTED, Wire

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime

SYNCS = ("position", "together")


@dataclass(frozen=True, kw_only=True)
class DllamaSystem(TpiSystem):
    """`system=dllama`."""

    name: str = setting("dllama", "how rows call it")
    prompt_sync: str = setting(
        "position",
        "how the sums of a prompt's positions travel: position: one by one, each after the last; "
        "together: all at once, as in the other systems",
        SYNCS,
    )
    strict: bool = setting(
        False, "run only where the program does: 2^n devices, no more than KV heads, equal shares"
    )

    def __post_init__(self) -> None:
        if self.prompt_sync not in SYNCS:
            raise ValueError(
                f"system.prompt_sync={self.prompt_sync} is unknown; choose one of "
                f"{', '.join(SYNCS)}"
            )
        super().__post_init__()

    @property
    def label(self) -> str:
        return self.name if self.collective == "direct" else f"{self.name} {self.collective}"

    @property
    def variant(self) -> str:
        words = [super().variant.replace("wire q8", "").strip()]
        words += ["wire auto"] if self.wire == "auto" else []
        words += ["prompt together"] if self.prompt_sync == "together" else []
        return " ".join(word for word in words if word)

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        if self.strict:
            _refuse_what_it_refuses(config, site)
        return super().plan(config, site)

    @property
    def allreduce(self) -> Collective:
        if self.prompt_sync == "together":
            return super().allreduce
        return replace(super().allreduce, run=_by_position(super().allreduce.run), to_hub=None)


def _refuse_what_it_refuses(config: ModelConfig, site: Site) -> None:
    """Raises ValueError for devices that distributed-llama cannot use."""
    most, count = config.num_kv_heads, site.num_devices
    fitting = [2**n for n in range(most.bit_length()) if 2**n <= most]
    if count not in fitting:
        raise ValueError(
            f"testbed.num_devices={count} with system.strict=true: distributed-llama runs on 2^n "
            f"devices, no more than the model's {most} KV heads; choose one of "
            f"{', '.join(map(str, fitting))}, or system.strict=false"
        )
    if len(set(site.proportions)) > 1:
        raise ValueError(
            "testbed.proportions with system.strict=true: distributed-llama divides evenly; leave "
            "testbed.proportions out, or set system.strict=false"
        )


def _by_position(run: Allreduce) -> Allreduce:
    """The allreduce of one position after the other: each waits for its messages."""

    def run_each(rt: Runtime, partial: torch.Tensor, wire: Wire = AS_COMPUTED) -> torch.Tensor:
        for number in range(partial.shape[0]):
            row = partial[number : number + 1]
            whole = run(rt, row, wire)
            if whole is not row:
                rt.compute(("join", 1, *row.shape, row.dtype), functools.partial(row.copy_, whole))
        return partial

    return run_each
