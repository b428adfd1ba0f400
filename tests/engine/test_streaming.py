"""What a device keeps of its blocks and what it streams: settings and retention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from baselines.pipeline import PipelineSystem
from tests.helpers.blocks import blocks
from tests.helpers.planned import planned_job
from tpi_bench.contract.blocks import BlockFile
from tpi_bench.contract.job import Job
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.streaming import (
    WindowConfig,
    WindowedSystem,
    parse_window,
    resident_indices,
)
from tpi_bench.engine.tpi import TpiSystem


def test_retention_and_resident_ends() -> None:
    own = blocks(4, master=True)
    kept = resident_indices(own, WindowConfig(size=2, retain_every=2, resident_io=True))
    assert [own[i].key for i in sorted(kept)] == ["input", "ffn_0", "ffn_2", "output"]
    assert resident_indices(own, WindowConfig(size=2)) == set()
    assert resident_indices(own, WindowConfig(size=10)) == set(range(10))


@pytest.mark.parametrize("value", ["off", "OFF", False, None])
def test_off_in_every_spelling(value: object) -> None:
    assert parse_window(value, 0, False).size is None


@pytest.mark.parametrize(
    ("window", "retain", "io", "loading", "message"),
    [
        ("auto", 2, False, "overlapped", "window=auto decides itself what is kept"),
        ("auto", 0, True, "overlapped", "window=auto decides itself what is kept"),
        ("auto", 0, False, "blocking", "window=auto decides itself what is kept"),
        (2, 0, False, "blocking", "window=2 with system.loading=blocking"),
        (2, 0, False, "mmap", "the kernel decides what is held"),
        ("off", 2, False, "mmap", "the kernel decides what is held"),
        ("off", 0, True, "mmap", "the kernel decides what is held"),
        (2, 0, True, "faulted", "a matrix is mapped when it is needed"),
        ("off", 2, True, "faulted", "a matrix is mapped when it is needed"),
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
    with pytest.raises(ValueError, match="must be a whole number of at least 1, auto or off"):
        parse_window(value, 0, False)


def job_of(own: list[BlockFile]) -> Job:
    """Of one device with these blocks, whose memory nobody knows."""
    return replace(planned_job(), blocks=[own])


every_windowed_system = pytest.mark.parametrize("system", [TpiSystem, PipelineSystem])


@every_windowed_system
@pytest.mark.parametrize("value", ["off", None, False])
def test_a_system_without_a_window_keeps_everything(
    system: type[WindowedSystem], value: object
) -> None:
    made = system(window=value)
    assert made.window_config == WindowConfig()
    assert made.window_config.holds_all
    own = blocks(2, master=True)
    assert made.streaming(job_of(own), 0) == Streaming.of_all(own)
    assert made.variant == ""


@every_windowed_system
def test_a_system_with_a_window_streams(system: type[WindowedSystem]) -> None:
    made = system(window=2, retain_every=2, resident_io=True)
    assert made.window_config == WindowConfig(size=2, retain_every=2, resident_io=True)
    # The ends and ffn_0 are kept; attn_0, attn_1 and ffn_1 come round, each next to each.
    own = blocks(2, master=True)
    streaming = made.streaming(job_of(own), 0)
    assert streaming.kept == (own[0], None, own[2], None, None, own[5])
    assert streaming.streamed == (None, own[1], None, own[3], own[4], None)
    assert streaming.window == 2
    assert streaming.area_bytes == 4096 + 8192 + 4096
    assert streaming.kept_bytes == 40960 + 8192 + 40960
    assert streaming.streamed_bytes == 4096 + 8192 + 4096
    assert made.variant.startswith("window 2 keep 2")


@every_windowed_system
def test_other_ways_to_get_weights_hold_little(system: type[WindowedSystem]) -> None:
    blocking, mapped = system(loading="blocking"), system(loading="mmap")
    assert blocking.window_config == WindowConfig(size=1, loading="blocking")
    held_at_once = blocking.streaming(job_of(blocks(2)), 0)
    assert (held_at_once.kept_bytes, held_at_once.area_bytes) == (0, 8192)
    assert (held_at_once.window, held_at_once.loading) == (1, "blocking")
    assert mapped.window_config == WindowConfig(loading="mmap")
    paged = mapped.streaming(job_of(blocks(2)), 0)
    assert paged.is_paged
    assert (paged.kept_bytes, paged.streamed_parts) == (0, blocks(2))
    faulted = system(loading="faulted", resident_io=True)
    paged = faulted.streaming(job_of(blocks(1, master=True)), 0)
    assert paged.is_paged
    assert (paged.kept_bytes, paged.streamed_parts) == (2 * 40960, blocks(1))
    assert (blocking.variant, mapped.variant) == ("", "")


@every_windowed_system
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "system.window=0 must be a whole number of at least 1, auto or off"),
        ({"window": True}, "system.window=True must be a whole number of at least 1, auto or off"),
        ({"window": "auto", "keep": "all"}, "system.keep=all is unknown; choose one of balanced"),
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


@every_windowed_system
@pytest.mark.parametrize("value", ["auto", "AUTO"])
@pytest.mark.parametrize("keep", ["balanced", "blocks"])
def test_memory_may_decide(system: type[WindowedSystem], value: str, keep: str) -> None:
    made = system(window=value, keep=keep)
    assert made.window_config == WindowConfig(keep=keep)
    assert not made.window_config.holds_all
    assert made.variant == ("window auto" if keep == "balanced" else "window auto of blocks")
    assert system(keep=keep).variant == ""
