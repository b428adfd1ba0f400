"""What is cached of a file, and that it can be dropped."""

from __future__ import annotations

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
