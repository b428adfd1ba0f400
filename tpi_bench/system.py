"""What a system is: a way to run a model on devices, configured by a dataclass with `_target_`.

A new system is one file with such a dataclass and one YAML in `conf/system/`. There are two kinds,
each with a base class that leaves only what is its own to say: `EngineSystem` runs a rank program
on block files (`baselines/pipeline.py`), `LibrarySystem` a real library in one process
(`baselines/hf_transformers.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from tpi_bench.job import Job, Output
from tpi_bench.models import BYTES_PER_VALUE, ModelConfig
from tpi_bench.plans import Plan, Site
from tpi_bench.window import WindowConfig
from tpi_bench.workload import Generation

if TYPE_CHECKING:
    from tpi_bench.runtime import Runtime
    from tpi_bench.sources import Model


class System(Protocol):
    """The launcher's and the devices' view of a system.

    Heavy imports belong inside `run_device`.
    """

    name: str
    max_devices: ClassVar[
        int | None
    ]  # 1 for single-process systems: their rows never name a network
    stand_in: ClassVar[str | None]  # None: runs in virtual time too; else what to run there

    @property
    def needs_profiles(self) -> bool:
        """Whether `plan` must know what the devices can do, on this host too."""
        ...

    def plan(self, config: ModelConfig, site: Site) -> Plan | None:
        """Who owns what. Raises ValueError when these devices cannot share this model."""
        ...

    def files(self, model: Model, cache_dir: Path) -> Path | None:
        """What the devices open instead of block files, made if it is missing."""
        ...

    def window_config(self) -> WindowConfig:
        """How many blocks a device holds at once."""
        ...

    def num_threads(self, offered: int) -> int:
        """Threads of each device, of which the testbed offers so many."""
        ...

    def compute_dtype(self, model_dtype: str) -> str:
        """What it computes in, where `model.dtype` is this."""
        ...

    def sync_steps(self, job: Job) -> int:
        """One-way link latencies on the critical path of one token (see `theory.py`)."""
        ...

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        """The rank program; the master returns the generation."""
        ...


class _Defaults:
    """What most systems say."""

    @property
    def needs_profiles(self) -> bool:
        return False

    def window_config(self) -> WindowConfig:
        return WindowConfig()

    def num_threads(self, offered: int) -> int:
        return offered

    def compute_dtype(self, model_dtype: str) -> str:
        return model_dtype


class EngineSystem(_Defaults, ABC):
    """A rank program over the runtime and block files: any number of devices, any testbed."""

    max_devices: ClassVar[int | None] = None
    stand_in: ClassVar[str | None] = None

    def files(self, model: Model, cache_dir: Path) -> Path | None:
        return None

    @abstractmethod
    def plan(self, config: ModelConfig, site: Site) -> Plan | None:
        """As in `System`."""

    @abstractmethod
    def sync_steps(self, job: Job) -> int:
        """As in `System`."""

    @abstractmethod
    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        """As in `System`."""


class LibrarySystem(_Defaults, ABC):
    """A real library in one process of this host, on files of its own."""

    max_devices: ClassVar[int | None] = 1
    stand_in: ClassVar[str | None] = "system=tpi testbed.num_devices=1"
    # Whether it needs what a device process has loaded from the start: see `caps.py`.
    uses_torch: ClassVar[bool] = True

    def plan(self, config: ModelConfig, site: Site) -> Plan | None:
        return None

    def files(self, model: Model, cache_dir: Path) -> Path | None:
        """The checkpoint as a Hugging Face folder."""
        from tpi_bench.sources import hugging_face_folder

        return hugging_face_folder(model, cache_dir)

    def sync_steps(self, job: Job) -> int:
        return 0

    @abstractmethod
    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        """As in `System`."""

    def token_weight_bytes(self, job: Job) -> int:
        """Bytes of weights that a token touches, all but the rows it looks up in an embedding."""
        shapes = job.config.tensor_shapes()
        values = sum(rows * (cols[0] if cols else 1) for rows, *cols in shapes.values())
        if not job.config.tied_embeddings:
            values -= job.config.vocab * job.config.hidden
        return values * BYTES_PER_VALUE[self.compute_dtype(job.dtype)]
