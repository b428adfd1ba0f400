"""What can go wrong with a cluster, each tried several times in the middle of an answer.

`python -m tests.cluster_demo.faults --times 5` prints a table: after how many seconds the row names
the node and says why, and what was left behind. `--only NAME,NAME` tries some.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster_demo import rows
from tests.cluster_demo.driver import Driver
from tests.cluster_demo.machines import Machines

POINT = (
    "model=debug",
    "workload.prompt_ids=[1,2,3]",
    "workload.num_new_tokens=500",
    "network.timeout_s=2",
    "testbed=cluster",
    "testbed.threads_per_device=1",
    "testbed.share_files=false",
)
HUNGRY = (
    "system._target_=tests.cluster_demo.hungry.HungrySystem",
    "system.name=hungry",
    "+system.hungry_rank=1",
    "+system.from_step=60",
    "device.memory_mb=400",
)
SMALL_DISK_MB = 160
_ENOUGH_S = 6.0  # for processes to end
_VICTIM = 1


@dataclass(frozen=True)
class Tried:
    """One try of a fault: what was said after how long, and what was left behind."""

    took_s: float
    said: str
    is_right: bool
    left: list[str]


@dataclass
class Stage:
    """Machines, and a program on the first that runs points. `disk` is the victim's small disk."""

    machines: Machines
    driver: Driver
    folder: Path
    arguments: tuple[str, ...]
    disk: Path | None = None
    agents: set[int] = field(default_factory=set)  # which have been there

    @property
    def victim(self) -> str:
        return self.machines.addresses[_VICTIM]

    def begin(self, *arguments: str) -> None:
        """A long point, to its first token."""
        self.driver.begin([*self.arguments, *arguments])
        said = self.driver.hear()
        if "begun" not in said:
            raise RuntimeError(f"the point has not begun: {said}")
        self.agents |= {process.pid for process in self.machines.agents()}

    def left(self) -> list[str]:
        """Devices that still run after a while, and groups for their memory."""
        self.machines.await_no_devices(_ENOUGH_S)
        found = [
            f"device {process.pid} on machine {number}"
            for number in self.machines.rays
            for process in self.machines.devices(number)
        ]
        return found + [str(path) for path in traces() if set(_numbers(path)) & self.agents]


Harm = Callable[[Stage], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`harm` is done at the first token. The row then has one of `statuses`, and says `words`."""

    name: str
    harm: Harm
    statuses: tuple[str, ...]
    words: str
    mend: Harm = lambda stage: None
    arguments: tuple[str, ...] = ()
    names_victim: bool = True
    needs_root: bool = False

    def tried(self, stage: Stage) -> Tried:
        stage.begin(*self.arguments)
        start_s = time.monotonic()
        try:
            self.harm(stage)
            said = stage.driver.end_of_point(60)
            took_s = time.monotonic() - start_s
            left = stage.left()
        finally:
            self.mend(stage)
        text = str((said or {}).get("error") or (said or {}).get("refused") or "")
        is_right = (said or {}).get("status") in self.statuses and bool(re.search(self.words, text))
        if self.names_victim:
            is_right &= f"rank {_VICTIM} on node {stage.victim} (" in text
        return Tried(took_s, text, is_right, left)


def send(number: int) -> Harm:
    """A signal to the victim's device."""

    def harm(stage: Stage) -> None:
        [process] = stage.machines.devices(_VICTIM)
        os.kill(process.pid, number)

    return harm


def join_again(stage: Stage) -> None:
    """A machine that Ray has given up may not come back as it is."""
    stage.machines.cut(_VICTIM, up=True)
    stage.machines.kill(_VICTIM)
    stage.machines.start(_VICTIM)


def fill_disk(stage: Stage) -> None:
    """Of the victim, to the last byte, in the middle of a token."""
    assert stage.disk is not None
    with (stage.disk / "filler").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()


@dataclass(frozen=True, kw_only=True)
class FullDisk(Fault):
    """The point that runs has what it needs and is not hurt; the next one that has not is refused,
    with the node's name.
    """

    def tried(self, stage: Stage) -> Tried:
        fresh = ("model.seed=%d" % (time.monotonic_ns() % 100_000),)  # noqa: UP031
        stage.begin("workload.num_new_tokens=60")
        start_s = time.monotonic()
        try:
            self.harm(stage)
            ended = stage.driver.end_of_point(60) or {}
            start_s = time.monotonic()
            said = stage.driver.run(*stage.arguments, *fresh)
            took_s = time.monotonic() - start_s
            left = stage.left()
        finally:
            self.mend(stage)
        text = str(said.get("refused") or said.get("error") or "")
        is_right = ended.get("status") == "ok" and bool(re.search(self.words, text))
        return Tried(took_s, text, is_right and f"node {stage.victim} (" in text, left)


@dataclass(frozen=True, kw_only=True)
class Interrupt(Fault):
    """Ctrl-C ends the program: there is no row, and nothing is left."""

    def tried(self, stage: Stage) -> Tried:
        stage.begin()
        start_s = time.monotonic()
        self.harm(stage)
        stage.driver.process.wait(30)
        took_s = time.monotonic() - start_s
        left = stage.left() + stage.machines.left_over()
        stage.driver = Driver(stage.machines)
        return Tried(took_s, "the program has ended", True, left)


def interrupt(stage: Stage) -> None:
    stage.driver.process.send_signal(signal.SIGINT)


FAULTS: tuple[Fault, ...] = (
    Fault(
        name="node",
        harm=lambda stage: stage.machines.kill(_VICTIM),
        mend=lambda stage: stage.machines.start(_VICTIM),
        statuses=("device_lost",),
        words="is lost with its node",
    ),
    Fault(
        name="link",
        harm=lambda stage: stage.machines.cut(_VICTIM),
        mend=join_again,
        statuses=("device_lost", "timeout"),
        words="is lost with its node|has not answered",
        needs_root=True,
    ),
    Fault(
        name="device",
        harm=send(signal.SIGKILL),
        statuses=("device_lost",),
        words=r"was killed by signal 9 \(SIGKILL\)",
    ),
    Fault(
        name="hang",
        harm=send(signal.SIGSTOP),
        statuses=("timeout",),
        words=r"hangs: it has not answered for 2 s \(network.timeout_s\)",
    ),
    Fault(
        name="memory",
        harm=lambda stage: None,
        statuses=("oom",),
        words="memory",
        arguments=HUNGRY,
    ),
    FullDisk(
        name="disk",
        harm=fill_disk,
        mend=lambda stage: (stage.disk or Path()).joinpath("filler").unlink(),
        statuses=(),
        words="free some space there",
        needs_root=True,
    ),
    Interrupt(name="ctrl-c", harm=interrupt, statuses=(), words=""),
)


def head_killed(folder: Path, cache_dir: Path, disk: Path | None) -> Tried:
    """All that runs on the machine of Ray's head but the program that asked. It takes a cluster."""
    with staged(folder, cache_dir, disk, num=2) as stage:
        stage.begin()
        start_s = time.monotonic()
        stage.machines.kill(0)
        said = stage.driver.end_of_point(30)
        took_s = time.monotonic() - start_s
        left = stage.left()
        text = str((said or {}).get("error") or "Ray has ended the program")
        own = f"rank 0 on node {stage.machines.addresses[0]} ("
        is_right = said is None or (said.get("status") == "device_lost" and own in text)
    return Tried(took_s, text, is_right, left)


@contextlib.contextmanager
def staged(folder: Path, cache_dir: Path, disk: Path | None, num: int = 3) -> Iterator[Stage]:
    """Machines and a program, taken down afterwards."""
    with Machines(num) as machines:
        arguments = (
            *POINT,
            f"testbed.address={machines.address}",
            f"testbed.num_devices={num}",
            f"testbed.node_cache_dir={folder}/node-ADDRESS",
            f"cache_dir={cache_dir}",
        )
        if disk is not None:
            link = folder / f"node-{machines.addresses[_VICTIM]}"
            link.unlink(missing_ok=True)
            link.symlink_to(disk)
        stage = Stage(machines, Driver(machines), folder, arguments, disk)
        try:
            yield stage
        finally:
            stage.driver.close()


@contextlib.contextmanager
def small_disk() -> Iterator[Path | None]:
    """A disk of some megabytes, mounted before the machines start; none without root."""
    if os.geteuid() != 0:
        yield None
        return
    folder = tempfile.mkdtemp(prefix="tpi_bench-disk-")
    size = f"size={SMALL_DISK_MB}m"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], check=False)
    try:
        yield Path(folder) if done.returncode == 0 else None
    finally:
        subprocess.run(["umount", folder], check=False, capture_output=True)
        os.rmdir(folder)


def traces() -> list[Path]:
    """Groups for memory of all programs on this host; the name of each has its maker's number."""
    return list(Path("/sys/fs/cgroup").rglob("tpi_bench-*-rank*"))


def _numbers(path: Path) -> list[int]:
    return [int(text) for text in re.findall(r"tpi_bench-(\d+)-", path.name)]


def line_of(name: str, tries: list[Tried]) -> str:
    """Of the table."""
    times = [each.took_s for each in tries]
    num_right = sum(each.is_right for each in tries)
    num_left = sum(len(each.left) for each in tries)
    spread = f"{statistics.median(times):6.1f} [{min(times):.1f}, {max(times):.1f}]"
    return (
        f"{name:8}{len(tries):6}{num_right:7}{spread:>20}{num_left:6}   "
        f"{re.sub(r'10[.]77[.][0-9]+|127[.]0[.]0', 'NET', tries[-1].said)[:110]}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="how often each is tried")
    parser.add_argument("--only", default="", help="names, with commas: " + ", ".join(names()))
    rows.add_argument(parser)
    asked = parser.parse_args()
    chosen = [name for name in asked.only.split(",") if name] or names()
    unknown = set(chosen) - set(names())
    if unknown:
        parser.error(f"--only={','.join(sorted(unknown))} is unknown; choose {', '.join(names())}")
    print(f"{'fault':8}{'tries':>6}{'named':>7}{'after s':>20}{'left':>6}   the last row says")
    all_right, kept = True, rows.Rows(asked.rows)
    for name, tries in results(chosen, asked.times):
        print(line_of(name, tries), flush=True)
        all_right &= all(each.is_right and not each.left for each in tries)
        for repeat, each in enumerate(tries):
            kept.add(fault=name, repeat=repeat, **{**vars(each), "left": len(each.left)})
        for each in tries:
            if each.left or not each.is_right:
                print(f"  not as it should be: {each}", flush=True)
    return 0 if all_right else 1


def names() -> list[str]:
    return [fault.name for fault in FAULTS] + ["head"]


def results(chosen: list[str], times: int) -> Iterator[tuple[str, list[Tried]]]:
    """Of each fault that is possible here."""
    with (
        small_disk() as disk,
        tempfile.TemporaryDirectory(prefix="tpi_bench-faults-") as scratch,
    ):
        folder = Path(scratch)
        cache_dir = folder / "cache"
        with staged(folder, cache_dir, disk) as stage:
            for fault in FAULTS:
                is_possible = stage.machines.has_links or not fault.needs_root
                if fault.name in chosen and is_possible:
                    yield fault.name, [fault.tried(stage) for _ in range(times)]
        if "head" in chosen:
            yield "head", [head_killed(folder, cache_dir, disk) for _ in range(times)]


if __name__ == "__main__":
    sys.exit(main())
