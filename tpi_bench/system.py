"""What a system is: a way to run a model on devices, configured by a dataclass with `_target_`.

A new system is one file with such a dataclass (see `baselines/pipeline.py`) and one YAML in
`conf/system/`. The launcher asks it for a plan; the devices run its `run_device`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from tpi_bench.job import Job, Output
from tpi_bench.models import ModelConfig
from tpi_bench.plans import Plan
from tpi_bench.window import WindowConfig
from tpi_bench.workload import Generation

if TYPE_CHECKING:
    from tpi_bench.runtime import Runtime


class System(Protocol):
    """The launcher's and the devices' view of a system.

    Heavy imports belong inside `run_device`.
    """

    name: str
    max_devices: ClassVar[
        int | None
    ]  # 1 for single-process systems: their rows never name a network
    reads_checkpoint: ClassVar[bool]  # True: needs the Hugging Face folder instead of block files

    def plan(self, config: ModelConfig, proportions: list[float]) -> Plan | None:
        """Who owns what. Raises ValueError when these devices cannot share this model."""
        ...

    def window_config(self) -> WindowConfig:
        """How many blocks a device holds at once."""
        ...

    def sync_steps(self, config: ModelConfig, num_devices: int) -> int:
        """One-way link latencies on the critical path of one token (see `theory.py`)."""
        ...

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        """The rank program; the master returns the generation."""
        ...
