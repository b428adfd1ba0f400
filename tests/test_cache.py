"""The cache folder under two runs at once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tpi_bench import cache


def _fill(folder: Path, order: multiprocessing.Queue) -> None:
    with cache.locked(folder):
        if folder.is_dir():
            order.put("reused")
            return
        with cache.new_folder(folder) as target:
            (target / "weights").write_bytes(b"x" * 1000)
            order.put("made")


def test_two_runs_at_once_make_a_folder_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    order: multiprocessing.Queue = context.Queue()
    folder = tmp_path / "model"
    processes = [context.Process(target=_fill, args=(folder, order)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(order.get(timeout=5) for _ in processes) == ["made", "reused", "reused"]
    assert (folder / "weights").stat().st_size == 1000


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def build() -> None:
        with cache.new_folder(folder) as target:
            (target / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        build()
    assert not list(tmp_path.iterdir())
