"""What a sweep over a cluster costs the one who asks: CPU time a point, and memory over points.

`python -m tests.cluster_demo.driver_cost --points 10000 --workers 1,2` runs trivial points in
virtual time through `hydra/launcher=ray`, on a machine with so many cores in turns, in sweeps that
double until they have that many points, and prints a line for each. A driver feeds as many cores as
a point takes longer on one than it takes the driver.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster_demo import rows
from tests.cluster_demo.machines import Machines

TRIVIAL = (
    *("-m", "task=measure", "testbed=virtual", "model=debug", "workload.prompt_tokens=4"),
    *("workload.num_new_tokens=2", "testbed.num_devices=2", "network=switch", "progress=false"),
)
_LOOK_S = 0.5
_LEAST = 300  # points


@dataclass(frozen=True)
class Look:
    """At the driver, when so many points were stored."""

    num_points: int
    at_s: float
    cpu_s: float
    memory_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--workers", default="1,2", help="cores of the machine, tried in turns")
    parser.add_argument("--seconds", type=float, default=3600.0, help="then none is begun any more")
    rows.add_argument(parser)
    asked = parser.parse_args()
    kept = rows.Rows(asked.rows)
    print(
        f"{'workers':>7}{'points':>8}{'wall s':>8}{'points/s':>9}{'driver CPU ms a point':>22}"
        f"{'worker ms a point':>18}  memory of the driver, MB at points"
    )
    begun_s = time.monotonic()
    for num_points in sizes_to(asked.points):
        for workers in (int(text) for text in asked.workers.split(",")):
            if time.monotonic() - begun_s < asked.seconds:
                found = looks(workers, num_points)
                print(line_of(workers, found), flush=True)
                for look in found:
                    kept.add(workers=workers, asked_points=num_points, repeat=0, **vars(look))
    return 0


def sizes_to(num_points: int) -> list[int]:
    """Of sweeps, each twice as long as the last."""
    sizes = [num_points]
    while sizes[0] >= 2 * _LEAST:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def line_of(workers: int, found: Sequence[Look]) -> str:
    """From the first points on to the last: starting the program and its workers is left out."""
    begun = next(look for look in found if look.num_points)
    last = max(found, key=lambda look: look.num_points)  # in the end they become tables
    count, wall_s = last.num_points - begun.num_points, last.at_s - begun.at_s
    cpu_ms = 1e3 * (last.cpu_s - begun.cpu_s) / count
    marks = [0.1, 0.25, 0.5, 1.0]
    seen = [min(found, key=lambda k, m=m: abs(k.num_points - m * last.num_points)) for m in marks]
    memory = ", ".join(f"{k.memory_bytes / 1e6:.0f} at {k.num_points}" for k in seen)
    return (
        f"{workers:7}{last.num_points:8}{wall_s:8.1f}{count / wall_s:9.1f}{cpu_ms:22.2f}"
        f"{1e3 * workers * wall_s / count:18.2f}  {memory}"
    )


def looks(workers: int, num_points: int) -> list[Look]:
    """A whole sweep."""
    found: list[Look] = []
    cores = sorted(os.sched_getaffinity(0))
    if workers > len(cores):
        raise ValueError(f"--workers={workers}: this host has {len(cores)} cores")
    os.sched_setaffinity(0, cores[:workers])  # which the machine inherits, and the driver does not
    with Machines(1, cpus=workers) as machines, tempfile.TemporaryDirectory() as scratch:
        os.sched_setaffinity(0, cores)
        folder = Path(scratch) / "rows"
        command = [
            *(sys.executable, "-m", "tpi_bench", *TRIVIAL, f"output_dir={folder}"),
            f"network.bandwidth_mbps=range(1,{num_points + 1})",
            f"cache_dir={scratch}/cache",
            *("hydra/launcher=ray", f"hydra.launcher.address={machines.address}"),
        ]
        with open(Path(scratch) / "said", "wb") as said:
            sweep = subprocess.Popen(machines.command(0, command), stdout=said, stderr=said)
        driver = psutil.Process(sweep.pid)
        try:
            while sweep.poll() is None:
                time.sleep(_LOOK_S)
                look = look_at(driver, folder)
                if look is not None:
                    found.append(look)
        finally:
            sweep.kill()
        if sweep.returncode != 0:
            raise RuntimeError((Path(scratch) / "said").read_text()[-2000:])
    return found


def look_at(driver: psutil.Process, folder: Path) -> Look | None:
    """None once it has ended."""
    points = folder / "points"
    num_points = (
        sum(name.endswith(".json") for name in os.listdir(points)) if points.is_dir() else 0
    )
    try:
        with driver.oneshot():
            times = driver.cpu_times()
            return Look(
                num_points, time.monotonic(), times.user + times.system, driver.memory_info().rss
            )
    except psutil.NoSuchProcess:
        return None


if __name__ == "__main__":
    sys.exit(main())
