"""Memory groups of version 2, on a tree of files."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from tpi_bench.host import cgroups

# Version 2, on a tree of files


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's slice as systemd makes it; the launcher is in app.slice/own.scope."""
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    app = mount / "user.slice" / "app.slice"
    (app / "own.scope").mkdir(parents=True)
    proc.mkdir()
    (proc / "cgroup").write_text("0::/user.slice/app.slice/own.scope\n")
    (proc / "mountinfo").write_text(f"31 23 0:28 / {mount} rw - cgroup2 cgroup2 rw\n")
    for folder in (mount, mount / "user.slice", app):
        (folder / "cgroup.subtree_control").write_text("cpu memory pids")
        (folder / "cgroup.controllers").write_text("cpu memory pids")
        (folder / "cgroup.procs").write_text("")
    real = os.mkdir

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        """The kernel's part: a new group has files."""
        real(path, *args, **kwargs)
        for name in ("memory.max", "memory.swap.max", "cgroup.procs"):
            (Path(path) / name).write_text("")

    monkeypatch.setattr(os, "mkdir", mkdir)
    return tmp_path


def test_version_2_makes_siblings_of_the_own_group(tree: Path) -> None:
    app = tree / "cgroup" / "user.slice" / "app.slice"
    first, second = cgroups.make_groups(2, may_enable=False, proc=tree / "proc")
    assert (first.folder.parent, second.folder.parent) == (app, app)
    assert first.folder.name.startswith(f"tpi_bench-{os.getpid()}-")
    assert second.folder.name.endswith("-rank1")
    first.set_limit(5000)
    first.join()
    texts = {file.name: file.read_text() for file in first.folder.iterdir()}
    expected = {"memory.max": "5000", "memory.swap.max": "0", "cgroup.procs": str(os.getpid())}
    assert texts == expected


def test_version_2_reads_kills_and_peaks(tmp_path: Path) -> None:
    group = cgroups.MemoryGroup(tmp_path)
    assert group.num_kills() == 0
    assert math.isnan(group.peak_bytes())  # before Linux 5.19
    (tmp_path / "memory.peak").write_text("123456\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\n")
    assert group.peak_bytes() == 123456
    assert group.num_kills() == 1


def test_the_memory_controller_is_handed_down_only_for_a_cap(tree: Path) -> None:
    app = tree / "cgroup" / "user.slice" / "app.slice"
    for folder in (app, app.parent, app.parent.parent):
        (folder / "cgroup.subtree_control").write_text("cpu")
    assert cgroups.make_groups(1, may_enable=False, proc=tree / "proc") == []
    (group,) = cgroups.make_groups(1, may_enable=True, proc=tree / "proc")
    assert group.folder.parent == app
    assert (app / "cgroup.subtree_control").read_text() == "+memory"


def test_version_2_without_the_memory_controller_leaves_it_to_version_1(tree: Path) -> None:
    unified, memory = tree / "cgroup", tree / "memory"
    (memory / "job").mkdir(parents=True)
    for file in unified.rglob("cgroup.*"):
        file.write_text("")
    (tree / "proc" / "cgroup").write_text("4:memory:/job\n0::/\n")
    (tree / "proc" / "mountinfo").write_text(
        f"41 31 0:38 / {unified} rw - cgroup2 cgroup2 rw\n"
        f"35 31 0:32 / {memory} rw - cgroup cgroup rw,memory\n"
    )
    parents = cgroups._parents(tree / "proc", may_enable=True)
    assert parents == [(cgroups.MemoryGroupV1, memory / "job")]


def test_groups_of_dead_launchers_are_removed(tmp_path: Path) -> None:
    dead = tmp_path / "tpi_bench-4194999-ab12cd-rank0"
    alive = tmp_path / f"tpi_bench-{os.getpid()}-ab12cd-rank0"
    other = tmp_path / "tpi_bench-4194999"
    for folder in (dead, alive, other):
        folder.mkdir()
    cgroups.remove_stale(tmp_path)
    assert set(tmp_path.iterdir()) == {alive, other}


def test_where_nothing_is_known_there_are_no_groups(tmp_path: Path) -> None:
    assert cgroups.make_groups(2, may_enable=True, proc=tmp_path) == []
