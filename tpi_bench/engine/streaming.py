"""What a device keeps of its blocks and what it streams: the settings, said once.

TPI-LLM, section 3.3. Blocks are visited in a fixed cyclic order, once a token. At most `window`
streamed blocks are held; the others are resident: all of them when the window is off, every T-th
FFN block with retention (Proposition 6). With `auto` the device's memory decides (`budget.py`).
`window.py` does the streaming.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.job import Job
from tpi_bench.contract.system import PAGED, Streaming, System
from tpi_bench.engine.budget import KEEPS, within_memory
from tpi_bench.engine.placement import place_blocks

LOADINGS = ("overlapped", "blocking", "mmap", "faulted")


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """`size` None holds everything; `retain_every` T keeps the FFN blocks of the layers 0, T, 2 T
    ... (Proposition 6), 0 keeps none.

    `keep` is how to choose what stays where memory decides (`auto`), else None.
    """

    size: int | None = None
    retain_every: int = 0
    resident_io: bool = False
    loading: str = "overlapped"
    keep: str | None = None

    @property
    def holds_all(self) -> bool:
        """Whether the device needs memory for all its weights."""
        return self.size is None and self.keep is None and self.loading == "overlapped"


@dataclass(frozen=True, kw_only=True)
class WindowedSystem(System):
    """A rank program whose weights come through a window: base class of `tpi` and `pipeline`.

    `window` auto keeps what the device's memory allows: the same matrices of every layer (`keep`
    balanced) or whole blocks. `loading` overlapped reads ahead. `blocking` is the same without the
    overlap: a block is read when it is needed and given up after it. `mmap` is llama.cpp's way:
    files are mapped, the kernel pages them in when they are touched and evicts what it likes.
    `faulted` is Accelerate's: a matrix is mapped when it is needed, paged in as it is computed
    with, and unmapped after it.
    """

    window: Any = "off"
    keep: str = "balanced"
    retain_every: int = 0
    resident_io: bool = False
    loading: str = "overlapped"

    def __post_init__(self) -> None:
        _ = self.window_config

    @property
    def window_config(self) -> WindowConfig:
        """The settings, checked. Raises ValueError."""
        return parse_window(
            self.window, self.retain_every, self.resident_io, self.loading, self.keep
        )

    @property
    def variant(self) -> str:
        config = self.window_config
        words = [f"window {config.size}"] if config.size and self.loading != "blocking" else []
        words += [f"keep {self.retain_every}"] if self.retain_every else []
        words += {None: [], "balanced": ["window auto"], "blocks": ["window auto of blocks"]}[
            config.keep
        ]
        return " ".join(words)

    @abstractmethod
    def num_buffers(self, job: Job) -> int:
        """Hidden states of a step's positions that a device receives into at once, at most."""

    def streaming(self, job: Job, rank: int) -> Streaming:
        config = self.window_config
        if config.keep is None:
            return window_of(job.blocks[rank], config)
        return within_memory(job, rank, config.keep, self.num_buffers(job))

    def smaller_with(self) -> str | None:
        return "system.window=auto" if self.window_config.holds_all else None


def parse_window(
    window: object,
    retain_every: int,
    resident_io: bool,
    loading: str = "overlapped",
    keep: str = "balanced",
) -> WindowConfig:
    """From `system.window` and its companions; YAML reads `off` as False."""
    if loading not in LOADINGS:
        raise ValueError(
            f"system.loading={loading} is unknown; choose one of {', '.join(LOADINGS)}"
        )
    if keep not in KEEPS:
        raise ValueError(f"system.keep={keep} is unknown; choose one of {', '.join(KEEPS)}")
    if isinstance(retain_every, bool) or retain_every < 0:
        raise ValueError(
            f"system.retain_every={retain_every} must be at least 0 (0 keeps no block)"
        )
    size = _size_of(window)
    is_auto = str(window).lower() == "auto"
    if is_auto and (retain_every or resident_io or loading != "overlapped"):
        raise ValueError(
            "system.window=auto decides itself what is kept and reads ahead; set retain_every to "
            "0, resident_io to false and loading to overlapped"
        )
    if loading == "blocking" and size not in (None, 1):
        raise ValueError(
            f"system.window={size} with system.loading=blocking, which holds the one block that is "
            "in use; set system.window to off"
        )
    if loading == "faulted" and (size is not None or retain_every):
        raise ValueError(
            "with system.loading=faulted a matrix is mapped when it is needed; set system.window "
            "to off and retain_every to 0"
        )
    if loading == "mmap" and (size is not None or retain_every or resident_io):
        raise ValueError(
            "with system.loading=mmap the kernel decides what is held; set system.window to off, "
            "retain_every to 0 and resident_io to false"
        )
    return WindowConfig(
        size=1 if loading == "blocking" else size,
        retain_every=retain_every,
        resident_io=bool(resident_io),
        loading=loading,
        keep=keep if is_auto else None,
    )


def _size_of(window: object) -> int | None:
    """Blocks held at once; None for `off` and `auto`."""
    if window is None or window is False or str(window).lower() in ("off", "auto"):
        return None
    if isinstance(window, int) and window is not True and window >= 1:
        return window
    raise ValueError(f"system.window={window} must be a whole number of at least 1, auto or off")


def window_of(blocks: Sequence[BlockFile], config: WindowConfig) -> Streaming:
    """What these settings make of a device's blocks, whatever its memory."""
    resident = resident_indices(blocks, config)
    streamed = tuple(None if i in resident else block for i, block in enumerate(blocks))
    kept = tuple(block if i in resident else None for i, block in enumerate(blocks))
    if config.loading in PAGED:
        return Streaming(kept=kept, streamed=streamed, loading=config.loading)
    sizes = [block.nbytes for index, block in enumerate(blocks) if index not in resident]
    if not sizes:
        return Streaming.of_all(blocks)
    assert config.size is not None
    places, area_bytes = place_blocks(sizes, config.size)
    return Streaming(
        kept=kept,
        streamed=streamed,
        places=tuple(places),
        area_bytes=area_bytes,
        window=config.size,
        loading=config.loading,
    )


def resident_indices(blocks: Sequence[BlockFile], config: WindowConfig) -> set[int]:
    """Indices of the blocks that are loaded once and kept."""
    if config.size is None and config.loading not in PAGED:
        return set(range(len(blocks)))
    kept = set()
    for index, block in enumerate(blocks):
        is_io = block.kind in ("input", "output")
        is_retained = (
            config.retain_every > 0
            and block.kind == "ffn"
            and block.layer % config.retain_every == 0
        )
        if (is_io and config.resident_io) or is_retained:
            kept.add(index)
    if config.size is not None and config.size >= len(blocks) - len(kept):
        return set(range(len(blocks)))
    return kept
