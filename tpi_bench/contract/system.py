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
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Site

PAGED = ("mmap", "faulted")  # ways of loading in which the kernel pages in


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How a device gets its blocks' bytes, block by block.

    What is `kept` is loaded once; what is `streamed` comes anew for each use, to its place in an
    area: `places` are those of the streamed parts in their order. At most `window` blocks come
    through the area at once, None: as many as have room. Of a block with neither, an input
    embedding, rows are looked up on the disk. Where `is_paged`, what is streamed comes through
    mapped files, and the kernel decides how much of it stays.
    """

    kept: tuple[BlockFile | None, ...]
    streamed: tuple[BlockFile | None, ...]
    places: tuple[int, ...] = ()
    area_bytes: int = 0
    window: int | None = None
    loading: str = "overlapped"

    @classmethod
    def of_all(cls, blocks: Sequence[BlockFile]) -> Streaming:
        """Nothing comes twice."""
        return cls(kept=tuple(blocks), streamed=(None,) * len(blocks))

    @property
    def is_paged(self) -> bool:
        return self.loading in PAGED

    @property
    def kept_bytes(self) -> int:
        """Tied ends, which are one file, count once."""
        kept = [part for part in self.kept if part is not None]
        ends = {part.extent: part.nbytes for part in kept if part.layer < 0}
        return sum(ends.values()) + sum(part.nbytes for part in kept if part.layer >= 0)

    @property
    def streamed_parts(self) -> list[BlockFile]:
        """In the order of a token."""
        return [part for part in self.streamed if part is not None]

    @property
    def streamed_bytes(self) -> int:
        """Of a token."""
        return sum(part.nbytes for part in self.streamed_parts)


class System(Program):
    """What the launcher, the devices and the tables ask of a system.

    What has a default is what a rank program says that holds all its blocks, on any number of
    devices and any testbed. Heavy imports belong inside `run_device`.
    """

    name: str  # as in `system=NAME`

    talks: ClassVar[bool] = True  # it answers by the engine's request loop, which can go on
    speculations: ClassVar[tuple[str, ...]] = ("none",)  # of `speculation.py`, those it knows
    max_devices: ClassVar[int | None] = None  # 1: one process, whatever the testbed offers
    stand_in: ClassVar[str | None] = None  # what to run in virtual time, if this one cannot
    is_library: ClassVar[bool] = False  # somebody else's program, which rounds in its own way
    reads_blocks: ClassVar[bool] = True  # a plan is carried out with block files

    @abstractmethod
    def plan(self, config: ModelConfig, site: Site) -> Plan | None:
        """Who owns what; None where nothing is divided.

        Raises ValueError when these devices cannot share this model.
        """

    @abstractmethod
    def traffic(self, job: Job) -> Traffic:
        """What a token sends at least, and what of it is on its critical path."""

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

    def place(self, job: Job) -> str:
        """On what it runs, where that is not the testbed's devices."""
        return ""

    def note(self, job: Job) -> str:
        """What must be known of its rows before they are used."""
        return ""

    def checkpoint_path(self, model: Model, cache_dir: Path) -> Path | None:
        """What the devices open instead of block files, made if it is missing."""
        return None

    def draft_path(self, model: Model, cache_dir: Path) -> Path | None:
        """The same of a model that drafts, for a library that is given one."""
        return None

    def look(self, job: Job) -> None:
        """Before a device starts: whether what runs by itself, elsewhere, is there.

        Raises ValueError for what was typed, ConnectionError for what is not there. Takes no longer
        than the job may (`timeout_s`).
        """

    def streaming(self, job: Job, rank: int) -> Streaming:
        """How a device of a job with block files gets their bytes.

        Raises ValueError when its memory is too small.
        """
        return Streaming.of_all(job.blocks[rank])

    def num_threads(self, offered: int) -> int:
        """Threads of each device, of which the testbed offers so many."""
        return offered

    def precision(self, dtype: str, weights: str) -> tuple[str, str]:
        """What it computes in and holds weights in, where the model says so."""
        return dtype, weights

    def token_weight_bytes(self, job: Job) -> int:
        """Without block files: bytes of weights that a token touches, on all devices together."""
        return 0
