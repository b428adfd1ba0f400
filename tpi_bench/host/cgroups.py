"""Memory control groups of Linux, one a device: where they can be made, and what their files say.

Version 2 wants processes in leaves only, so a group for devices is a sibling of the launcher's own,
below the nearest ancestor that hands the memory controller down and may be written to (a user's
own systemd slice, or anything for root). Version 1 takes a child of the launcher's own group. A
group's name holds the launcher's process id, so that those of dead launchers can be told.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

_NAME = re.compile(r"tpi_bench-(\d+)-[0-9a-f]+-rank\d+")
_REMOVE_S = 2.0


@dataclass(frozen=True)
class MemoryGroup:
    """One group; the names of its files are those of version 2. Charged to it are anonymous pages,
    the page cache of files that its processes were the first to read, and kernel memory.
    """

    folder: Path

    version: ClassVar[str] = "cgroup v2"
    limit_file: ClassVar[str] = "memory.max"
    peak_file: ClassVar[str] = "memory.peak"  # since Linux 5.19
    events_file: ClassVar[str] = "memory.events"

    def set_limit(self, nbytes: int) -> None:
        """No more than `nbytes`, and no swap."""
        self._write(self.limit_file, nbytes)
        if (self.folder / "memory.swap.max").exists():
            self._write("memory.swap.max", 0)

    def join(self) -> None:
        """Put this process in. What it has stays charged where it was."""
        self._write("cgroup.procs", os.getpid())

    def peak_bytes(self) -> float:
        """The most that was charged; NaN where the kernel does not say, or nobody was there."""
        return float(self._read(self.peak_file) or 0) or math.nan

    def num_kills(self) -> int:
        """Processes of the group that the kernel killed for want of memory."""
        for line in self._read(self.events_file).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
        return 0

    def remove(self) -> bool:
        """Kill what is left in the group and remove it; False when it does not go."""
        deadline = time.monotonic() + _REMOVE_S
        while self.folder.is_dir():
            for pid in self._read("cgroup.procs").split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):  # busy until the last process is quite gone
                self.folder.rmdir()
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text().strip()
        except OSError:
            return ""

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))


class MemoryGroupV1(MemoryGroup):
    """The same with the names of version 1."""

    version = "cgroup v1"
    limit_file = "memory.limit_in_bytes"
    peak_file = "memory.max_usage_in_bytes"
    events_file = "memory.oom_control"

    def set_limit(self, nbytes: int) -> None:
        self._write(self.limit_file, nbytes)
        if (self.folder / "memory.memsw.limit_in_bytes").exists():  # memory and swap together
            self._write("memory.memsw.limit_in_bytes", nbytes)
        else:
            self._write("memory.swappiness", 0)


def make_groups(
    num_devices: int, *, may_enable: bool, proc: Path = Path("/proc/self")
) -> list[MemoryGroup]:
    """A new group a device, empty where none can be made. Those of dead launchers are removed.

    With `may_enable` the memory controller is handed down where version 2 allows it but has not
    done so yet.
    """
    for kind, parent in _parents(proc, may_enable):
        remove_stale(parent)
        name = f"tpi_bench-{os.getpid()}-{secrets.token_hex(3)}"
        groups = [kind(parent / f"{name}-rank{rank}") for rank in range(num_devices)]
        if _made(groups):
            return groups
    return []


def _made(groups: list[MemoryGroup]) -> bool:
    """All or none."""
    try:
        for group in groups:
            group.folder.mkdir()
        if all((group.folder / group.limit_file).exists() for group in groups):
            return True
    except OSError:
        pass
    for group in groups:
        with contextlib.suppress(OSError):
            group.folder.rmdir()
    return False


def remove_stale(parent: Path) -> None:
    """Remove the empty groups of launchers that are no more; their devices end by themselves."""
    with contextlib.suppress(OSError):
        for folder in list(parent.iterdir()):
            match = _NAME.fullmatch(folder.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _parents(proc: Path, may_enable: bool) -> list[tuple[type[MemoryGroup], Path]]:
    """Where groups may be made, the best first."""
    try:
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
        own = dict(_own_groups((proc / "cgroup").read_text()))
    except OSError:  # not Linux
        return []
    found: list[tuple[type[MemoryGroup], Path]] = []
    for fields in mounts:
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        root, point = fields[3], Path(fields[4])
        if kind == "cgroup2" and "" in own:
            folder = _below(point, root, own[""])
            above = [folder, *folder.parents]
            ancestors = above[1 : above.index(point) + 1] or [point]
            found = [(MemoryGroup, p) for p in ancestors if _hands_down(p, may_enable)] + found
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in own:
            found.append((MemoryGroupV1, _below(point, root, own["memory"])))
    return [(kind, parent) for kind, parent in found if os.access(parent, os.W_OK)]


def _own_groups(text: str) -> list[tuple[str, str]]:
    """(controller, path) pairs of a `cgroup` file of /proc; version 2 has no controller's name."""
    lines = [line.split(":", 2) for line in text.splitlines()]
    return [(name, path) for _, names, path in lines for name in names.split(",")]


def _below(point: Path, root: str, path: str) -> Path:
    """The folder of group `path` in a mount at `point` that shows the tree from `root` on."""
    inside = path.removeprefix(root.rstrip("/")) if root != "/" else path
    folder = point / inside.strip("/")
    return folder if folder.is_dir() and ".." not in folder.parts else point


def _hands_down(parent: Path, may_enable: bool) -> bool:
    """Whether groups below `parent` have the memory controller, and devices may be moved there."""
    try:
        control = parent / "cgroup.subtree_control"
        if "memory" in control.read_text().split():
            return os.access(parent / "cgroup.procs", os.W_OK)
        if may_enable and "memory" in (parent / "cgroup.controllers").read_text().split():
            control.write_text("+memory")
            return True
    except OSError:  # not ours, or it holds processes itself
        pass
    return False
