"""The cache folder under two runs at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from tests.helpers.command_line import run
from tpi_bench.host import cache
from tpi_bench.measure.calibrate import calibrate


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


def times(folder: Path) -> dict[Path, int]:
    """When each file and folder was changed; a folder is, by every file made or removed in it."""
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_a_run_that_finds_all_it_needs_writes_nothing(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    given = ["model=hf", f"model.path={checkpoints['gqa']}", "workload.prompt_ids=[1,2,3]"]
    assert run(*given, cache_dir=tmp_path).returncode == 0
    before = times(tmp_path)
    assert run(*given, cache_dir=tmp_path).returncode == 0
    assert times(tmp_path) == before


def test_a_run_that_needs_nothing_needs_no_folder() -> None:
    """Not even where it may not be made, as for root in /sys. What must be written is refused."""
    folder = Path("/sys/tpi_bench")
    given = ["model=debug", "workload.prompt_ids=[1,2]", "workload.num_new_tokens=2"]
    done = run(*given, "testbed=virtual", cache_dir=folder)
    assert done.returncode == 0, done.stderr
    done = run(*given, cache_dir=folder)
    assert done.returncode == 1
    assert f"cannot write to the cache folder {folder}/shards: " in done.stderr
    with pytest.raises(cache.CacheError, match=f"cannot write to the cache folder {folder}/hosts"):
        calibrate(folder)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "free some space there or choose"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "free some space"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system; choose another"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "denied; choose another"),
    ],
    ids=["full", "full in safetensors", "read-only", "not ours"],
)
def test_the_advice_fits_the_error(tmp_path: Path, error: Exception, advice: str) -> None:
    with pytest.raises(cache.CacheError) as caught, cache.explain_write_errors(tmp_path):
        raise error
    assert advice in str(caught.value)
    assert str(caught.value).endswith("another folder with cache_dir=DIR")


@pytest.mark.parametrize(
    ("free", "text"),
    [(0, "0 kB"), (65_536, "66 kB"), (2_500_000, "2.5 MB"), (790_000_000, "0.79 GB")],
)
def test_sizes_are_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, text: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(cache.CacheError, match=rf"needs 1\.00 GB in .*, which has {text} free;"):
        cache.require_space(tmp_path, 1_000_000_000, "this")
