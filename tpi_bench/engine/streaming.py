"""What a device keeps of its blocks and what it streams: the settings, said once.

TPI-LLM, section 3.3. Blocks are visited in a fixed cyclic order, once a token. At most `window`
streamed blocks are held; the others are resident: all of them when the window is off, every T-th
FFN block with retention (Proposition 6). `window.py` does the streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tpi_bench.contract.blocks import PAGE, BlockFile
from tpi_bench.contract.system import Streaming, System

LOADINGS = ("overlapped", "blocking", "mmap")


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """`size` None holds everything; `retain_every` T keeps each T-th FFN block, 0 keeps none."""

    size: int | None = None
    retain_every: int = 0
    resident_io: bool = False
    loading: str = "overlapped"


ALL_BLOCKS = WindowConfig()  # are held


@dataclass(frozen=True, kw_only=True)
class WindowedSystem(System):
    """A rank program whose weights come through a window: base class of `tpi` and `pipeline`.

    `loading` overlapped reads ahead. `blocking` is the same without the overlap, as Accelerate
    offloads: a block is read when it is needed and given up after it. `mmap` is llama.cpp's way:
    files are mapped, the kernel pages them in when they are touched and evicts what it likes.
    """

    window: Any = "off"
    retain_every: int = 0
    resident_io: bool = False
    loading: str = "overlapped"

    def __post_init__(self) -> None:
        _ = self.window_config

    @property
    def window_config(self) -> WindowConfig:
        """The settings, checked. Raises ValueError."""
        return parse_window(self.window, self.retain_every, self.resident_io, self.loading)

    @property
    def variant(self) -> str:
        config = self.window_config
        words = [f"window {config.size}"] if config.size and self.loading != "blocking" else []
        words += [f"keep {self.retain_every}"] if self.retain_every else []
        return " ".join(words)

    def streaming(self, blocks: Sequence[BlockFile]) -> Streaming:
        config = self.window_config
        resident = resident_indices(blocks, config)
        sizes = [block.nbytes for i, block in enumerate(blocks) if i not in resident]
        area_bytes = place_blocks(sizes, config.size or 0)[1] if sizes else 0
        return Streaming(frozenset(resident), area_bytes)

    def smaller_with(self) -> str | None:
        holds_all = self.window_config.size is None and self.loading == "overlapped"
        return "system.window=2" if holds_all else None


def parse_window(
    window: object, retain_every: int, resident_io: bool, loading: str = "overlapped"
) -> WindowConfig:
    """From `system.window` and its companions; YAML reads `off` as False."""
    if loading not in LOADINGS:
        raise ValueError(
            f"system.loading={loading} is unknown; choose one of {', '.join(LOADINGS)}"
        )
    size: int | None
    if window is None or window is False or str(window).lower() == "off":
        size = None
    elif isinstance(window, int) and window is not True and window >= 1:
        size = window
    else:
        raise ValueError(f"system.window={window} must be a whole number of at least 1, or off")
    if isinstance(retain_every, bool) or retain_every < 0:
        raise ValueError(
            f"system.retain_every={retain_every} must be at least 0 (0 keeps no block)"
        )
    if loading == "blocking" and size not in (None, 1):
        raise ValueError(
            f"system.window={size} with system.loading=blocking, which holds the one block that is "
            "in use; set system.window to off"
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
    )


def resident_indices(blocks: Sequence[BlockFile], config: WindowConfig) -> set[int]:
    """Indices of the blocks that are loaded once and kept."""
    if config.size is None:
        return set(range(len(blocks)))
    kept = set()
    for index, block in enumerate(blocks):
        is_io = block.kind in ("input", "output")
        is_retained = (
            config.retain_every > 0
            and block.kind == "ffn"
            and (block.layer + 1) % config.retain_every == 0
        )
        if (is_io and config.resident_io) or is_retained:
            kept.add(index)
    if config.size >= len(blocks) - len(kept):
        return set(range(len(blocks)))
    return kept


def place_blocks(sizes: Sequence[int], window: int, alignment: int = PAGE) -> tuple[list[int], int]:
    """Fixed addresses for blocks that stream through one memory area, and the area's size.

    Blocks are visited cyclically and at most `window` consecutive ones are held at once, so two
    blocks may share addresses only when they are at least `window` steps apart in both directions.
    Every block keeps one address for the whole run: nothing is allocated or re-viewed per load.
    Largest first, lowest free address; the area is then the paper's peak (Proposition 5).
    """
    count = len(sizes)
    rounded = [-(-size // alignment) * alignment for size in sizes]
    offsets = [-1] * count
    for block in sorted(range(count), key=lambda i: (-rounded[i], i)):
        near = {(block + d) % count for d in range(1 - window, window)} - {block}
        taken = sorted((offsets[i], offsets[i] + rounded[i]) for i in near if offsets[i] >= 0)
        address = 0
        for start, stop in taken:
            if address + rounded[block] <= start:
                break
            address = max(address, stop)
        offsets[block] = address
    return offsets, max((o + r for o, r in zip(offsets, rounded, strict=True)), default=0)
