"""What a system is: a way to run a model on devices, configured by a dataclass with `_target_`.

A new one is one file with such a dataclass in `baselines/` and one YAML in `conf/system/`; see
`baselines/README.md`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.job import Job, Program
from tpi_bench.contract.model import Model, ModelConfig
from tpi_bench.contract.plan import Plan, Site


@dataclass(frozen=True)
class Streaming:
    """Which of a device's blocks are loaded once and kept; the others pass through an area."""

    resident: frozenset[int]
    area_bytes: int = 0


class System(Program):
    """What the launcher, the devices and the tables ask of a system.

    What has a default is what a rank program says that holds all its blocks, on any number of
    devices and any testbed. Heavy imports belong inside `run_device`.
    """

    name: str  # as in `system=NAME`

    max_devices: ClassVar[int | None] = None  # 1: one process, whatever the testbed offers
    stand_in: ClassVar[str | None] = None  # what to run in virtual time, if this one cannot

    @abstractmethod
    def plan(self, config: ModelConfig, site: Site) -> Plan | None:
        """Who owns what; None where nothing is divided.

        Raises ValueError when these devices cannot share this model.
        """

    @abstractmethod
    def sync_steps(self, job: Job) -> int:
        """One-way link latencies on the critical path of one token."""

    @property
    def needs_profiles(self) -> bool:
        """Whether `plan` must know what the devices can do, also where they are this host."""
        return False

    @property
    def label(self) -> str:
        """How figures and tables call it."""
        return self.name

    @property
    def variant(self) -> str:
        """Behind the label: settings that make it another line in a figure."""
        return ""

    def checkpoint_path(self, model: Model, cache_dir: Path) -> Path | None:
        """What the devices open instead of block files, made if it is missing."""
        return None

    def streaming(self, blocks: Sequence[BlockFile]) -> Streaming:
        """What a device keeps of its blocks."""
        return Streaming(frozenset(range(len(blocks))))

    def num_threads(self, offered: int) -> int:
        """Threads of each device, of which the testbed offers so many."""
        return offered

    def compute_dtype(self, model_dtype: str) -> str:
        """What it computes in, where `model.dtype` is this."""
        return model_dtype

    def network_limit_s(self, job: Job, one_way_s: float) -> float:
        """What the links cost a token at least, where one message takes `one_way_s`."""
        return self.sync_steps(job) * one_way_s

    def token_weight_bytes(self, job: Job) -> int:
        """Without block files: bytes of weights that a token touches, all in one process."""
        return 0
