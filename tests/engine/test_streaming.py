"""What a device keeps of its blocks and what it streams: settings, retention, placement."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from baselines.pipeline import PipelineSystem
from tests.helpers.blocks import blocks
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.streaming import (
    WindowConfig,
    WindowedSystem,
    parse_window,
    place_blocks,
    resident_indices,
)
from tpi_bench.engine.tpi import TpiSystem


def test_retention_and_resident_ends() -> None:
    own = blocks(4, master=True)
    kept = resident_indices(own, WindowConfig(size=2, retain_every=2, resident_io=True))
    assert [own[i].key for i in sorted(kept)] == ["input", "ffn_1", "ffn_3", "output"]
    assert resident_indices(own, WindowConfig(size=2)) == set()
    assert resident_indices(own, WindowConfig(size=10)) == set(range(10))


@pytest.mark.parametrize("value", ["off", "OFF", False, None])
def test_off_in_every_spelling(value: object) -> None:
    assert parse_window(value, 0, False).size is None


@pytest.mark.parametrize(
    ("window", "retain", "io", "loading", "message"),
    [
        (2, 0, False, "blocking", "window=2 with system.loading=blocking"),
        (2, 0, False, "mmap", "the kernel decides what is held"),
        ("off", 2, False, "mmap", "the kernel decides what is held"),
        ("off", 0, True, "mmap", "the kernel decides what is held"),
        ("off", 0, False, "lazy", "loading=lazy is unknown; choose one of overlapped, blocking"),
    ],
)
def test_bad_loadings_are_refused(
    window: object, retain: int, io: bool, loading: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_window(window, retain, io, loading)


@pytest.mark.parametrize("value", [0, -1, "two", True, 1.5])
def test_bad_windows_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least 1, or off"):
        parse_window(value, 0, False)


every_windowed_system = pytest.mark.parametrize("system", [TpiSystem, PipelineSystem])


@every_windowed_system
@pytest.mark.parametrize("value", ["off", None, False])
def test_a_system_without_a_window_keeps_everything(
    system: type[WindowedSystem], value: object
) -> None:
    made = system(window=value)
    assert made.window_config == WindowConfig()
    assert made.streaming(blocks(2, master=True)) == Streaming(frozenset(range(6)))
    assert made.smaller_with() == "system.window=2"
    assert made.variant == ""


@every_windowed_system
def test_a_system_with_a_window_streams(system: type[WindowedSystem]) -> None:
    made = system(window=2, retain_every=2, resident_io=True)
    assert made.window_config == WindowConfig(size=2, retain_every=2, resident_io=True)
    # The ends and ffn_1 are kept; attn_0, ffn_0 and attn_1 come round, each next to each.
    streaming = made.streaming(blocks(2, master=True))
    assert streaming == Streaming(frozenset({0, 4, 5}), 4096 + 8192 + 4096)
    assert made.smaller_with() is None
    assert made.variant.startswith("window 2 keep 2")


@every_windowed_system
def test_other_ways_to_get_weights_hold_little(system: type[WindowedSystem]) -> None:
    blocking, mapped = system(loading="blocking"), system(loading="mmap")
    assert blocking.window_config == WindowConfig(size=1, loading="blocking")
    assert blocking.streaming(blocks(2)) == Streaming(frozenset(), 8192)
    assert mapped.window_config == WindowConfig(loading="mmap")
    assert (blocking.smaller_with(), mapped.smaller_with()) == (None, None)
    assert (blocking.variant, mapped.variant) == ("", "")


@every_windowed_system
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "system.window=0 must be a whole number of at least 1, or off"),
        ({"window": True}, "system.window=True must be a whole number of at least 1, or off"),
        ({"retain_every": -1}, "system.retain_every=-1 must be at least 0"),
        ({"retain_every": True}, "system.retain_every=True must be at least 0"),
        ({"loading": "lazy"}, "system.loading=lazy is unknown; choose one of overlapped"),
        ({"window": 2, "loading": "blocking"}, "system.window=2 with system.loading=blocking"),
        ({"window": 2, "loading": "mmap"}, "with system.loading=mmap the kernel decides"),
    ],
)
def test_bad_settings_of_a_system_are_refused(
    system: type[WindowedSystem], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        system(**settings)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("sizes", [[90, 3, 5, 3, 5, 3, 5, 90], [3, 5, 3, 5, 3, 5], [4, 9, 2, 7, 1]])
def test_blocks_held_together_never_overlap(sizes: list[int], window: int) -> None:
    offsets, total = place_blocks(sizes, window, alignment=1)
    count = len(sizes)
    for first in range(count):
        held = [(first + i) % count for i in range(min(window, count))]
        spans = sorted((offsets[i], offsets[i] + sizes[i]) for i in held)
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
        assert spans[-1][1] <= total


def test_window_memory_follows_proposition_5() -> None:
    attn, ffn, embedding = 3, 5, 90
    master = [embedding, *[attn, ffn] * 6, embedding]
    worker = [attn, ffn] * 6
    assert place_blocks(master, 1, alignment=1)[1] == embedding
    assert place_blocks(master, 2, alignment=1)[1] == 2 * embedding
    assert place_blocks(master, 4, alignment=1)[1] == 2 * embedding + attn + ffn
    assert place_blocks(worker, 2, alignment=1)[1] == attn + ffn
    assert place_blocks(worker, 4, alignment=1)[1] == 2 * (attn + ffn)
