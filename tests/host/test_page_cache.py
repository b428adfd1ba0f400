"""What is cached of a file, and that it can be dropped."""

from __future__ import annotations

import math
import mmap
import os
import sys
import time
from pathlib import Path

import pytest

from tpi_bench.host import memory, page_cache

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not tell")


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Ten pages and a bit, just written."""
    path = tmp_path / "block"
    path.write_bytes(os.urandom(10 * mmap.PAGESIZE + 1))
    return str(path)


@linux_only
def test_cold_drops_what_was_just_written(file: str) -> None:
    assert page_cache.cached_bytes([file]) == 11 * mmap.PAGESIZE
    page_cache.drop(file)
    if page_cache.cached_bytes([file]):
        pytest.skip("this file system keeps files in memory")
    Path(file).read_bytes()
    assert page_cache.cached_bytes([file]) == 11 * mmap.PAGESIZE


@linux_only
def test_files_that_are_empty_or_missing_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    page_cache.drop(str(tmp_path / "missing"))
    assert page_cache.cached_bytes([str(tmp_path / "empty"), str(tmp_path / "missing")]) == 0


@linux_only
def test_looks_at_shared_memory_are_rare_when_they_are_dear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = memory.PssSampler()
    monkeypatch.setattr(sampler, "_next_s", 0.0)
    sampler.sample({0: os.getpid(), 1: 2**22 + 1})
    assert sampler.peaks.keys() == {0}
    assert sampler.peaks[0] > 1e6
    assert 0 < sampler.due_in_s() <= sampler.interval_s

    def dear(pid: int) -> float:
        start = time.thread_time()
        while time.thread_time() - start < 0.01:
            pass
        return 5.0

    monkeypatch.setattr(memory, "pss_bytes", dear)
    monkeypatch.setattr(sampler, "_next_s", 0.0)
    sampler.sample({0: os.getpid()})
    assert sampler.interval_s >= 2.0
    assert sampler.due_in_s() > 1.9
    assert sampler.peaks[0] > 1e6


def test_free_memory_in_large_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of 2 MB and one of 4 MB in one zone, one of 2 MB in another."""
    told = tmp_path / "buddyinfo"
    told.write_text(
        "Node 0, zone    DMA32     16     22     24     20     21   14   11   10   11    1    0\n"
        "Node 0, zone   Normal  21671   6398   9587  18151  20669 7929 3388  827  257    3    1\n"
    )
    monkeypatch.setattr(page_cache, "_FREE_PIECES", told)
    monkeypatch.setattr(page_cache.mmap, "PAGESIZE", 4096)
    assert page_cache.large_free_bytes() == (2 + 6 + 4) * 2**20
    monkeypatch.setattr(page_cache, "_FREE_PIECES", tmp_path / "nothing")
    assert math.isnan(page_cache.large_free_bytes())


def test_a_cold_start_puts_free_memory_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "compact_memory"
    monkeypatch.setattr(page_cache, "_COMPACT", asked)
    page_cache.begin([], "warm")
    assert not asked.exists()
    page_cache.begin([], "cold")
    assert asked.read_text() == "1"
    monkeypatch.setattr(page_cache, "_COMPACT", tmp_path / "no folder" / "x")
    assert page_cache.compact() is False
