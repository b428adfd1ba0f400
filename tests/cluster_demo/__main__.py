"""`make cluster_demo`: a cluster of three machines on this host, used as one would use it, and all
taken down.

A point, a survey, a small fig_latency over real addresses, and advice on the survey's folder. As
root the machines are network namespaces, else addresses of loopback (`machines.py`). With
`--twin FOLDER` instead: a survey of two machines, a core each, and fig_twin into that folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster_demo.machines import Machines

POINT = ("workload.num_new_tokens=8", "prompt=What is the capital of France?")
VARIANTS = (
    ("system=tpi",),
    ("system=tpi_ring",),
    ("system=tpi_direct",),
    ("system=tpi", "system.window=2"),
    ("system=pipeline",),
    ("system=galaxy",),
    ("system=tpi", "model.weights=q8"),
    ("system=tpi", "model.weights=q4"),
    ("system=tpi", "network.tls=true"),
)
FIGURE = (
    *("+experiment=fig_latency", "network=none", "hydra.sweeper.grids=[]", "repeat=0"),
    *("system=tpi,tpi_ring,tpi_direct,pipeline", "workload.num_new_tokens=6"),
)
ADVICE = ("task=advise", "model=tinyllama_1.1b", "timeout_s=10")
_WITHIN_S = 300
_TWIN_WITHIN_S = 1800


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every variant, not only the first")
    parser.add_argument("--points", action="store_true", help="no survey, figure and advice")
    parser.add_argument("--twin", type=Path, metavar="FOLDER", help="only fig_twin, into FOLDER")
    parser.add_argument("arguments", nargs="*", help="of tpi_bench, for the points")
    asked = parser.parse_args()
    if asked.twin is not None:
        return _twin(asked.twin.absolute(), asked.arguments)
    variants = VARIANTS if asked.all else VARIANTS[:1]
    start_s = time.monotonic()
    with Machines(3) as machines:
        kind = "network namespaces" if machines.has_links else "addresses of loopback"
        took_s = time.monotonic() - start_s
        print(f"three {kind} with Ray: {', '.join(machines.addresses)} ({took_s:.0f} s)")
        good = [_compare(machines, (*variant, *asked.arguments)) for variant in variants]
        if not asked.points:
            good += [step(machines) for step in (_survey, _figure, _advice)]
        left = machines.left_over()
        print(f"left running on the machines: {len(left)}")
    print(f"all taken down after {time.monotonic() - start_s:.0f} s")
    return 0 if all(good) and not left else 1


def _compare(machines: Machines, variant: tuple[str, ...]) -> bool:
    """A point over the machines beside the same on one device; whether the tokens are equal."""
    own = [text for text in variant if not text.startswith("network.")]
    alone = _answer(machines, "testbed=processes", "testbed.num_devices=1", *own)
    folder = machines.folder / "blocks-ADDRESS"
    spread = _answer(
        machines,
        *_cluster(machines),
        "testbed.share_files=false",
        f"testbed.node_cache_dir={folder}",
        *variant,
    )
    is_equal = bool(spread.get("text")) and spread.get("text") == alone.get("text")
    print(f"{' '.join(variant)}: {'the same' if is_equal else 'NOT the same'} answer as one device")
    print(f"  {spread.get('text') or spread}")
    sizes = [
        sum(file.stat().st_size for file in Path(str(folder).replace("ADDRESS", own)).rglob("*"))
        for own in machines.addresses
    ]
    print(f"  MB of block files on each machine: {[round(size / 1e6) for size in sizes]}")
    return is_equal


def _survey(machines: Machines) -> bool:
    """What the machines and their links give, into a folder."""
    folder = machines.folder / "survey"
    return _typed(
        machines,
        ["task=survey", *_cluster(machines), f"output_dir={folder}"],
        lambda: len(list((folder / "devices").glob("*.json"))) == 3,
    )


def _figure(machines: Machines) -> bool:
    """The main job, small: its rows come from the machines' own addresses."""
    folder = machines.folder / "fig_latency"
    return _typed(
        machines,
        [*FIGURE, *_cluster(machines), f"output_dir={folder}"],
        lambda: (folder / "fig_latency.png").stat().st_size > 10_000,
    )


def _advice(machines: Machines) -> bool:
    """On the devices and links of the survey."""
    folder = machines.folder / "advice"
    return _typed(
        machines,
        [*ADVICE, f"device={machines.folder / 'survey'}/", f"output_dir={folder}"],
        lambda: (folder / "advice.json").is_file(),
    )


def _twin(folder: Path, arguments: list[str]) -> int:
    """The same points on two machines and in virtual time, which knows the survey alone."""
    with Machines(2) as machines:
        survey = machines.folder / "survey"
        where = ["testbed=cluster", f"testbed.address={machines.address}", "testbed.num_devices=2"]
        steps = {
            "survey": ["task=survey", *where, f"output_dir={survey}"],
            "fig_twin": [
                *("+experiment=fig_twin", f"--config-dir={survey}", f"device={survey}/devices/"),
                *("testbed.num_devices=2", "testbed.threads_per_device=1", f"output_dir={folder}"),
                *arguments,
            ],
        }
        for name, typed in steps.items():
            print(f"\npython -m tpi_bench {' '.join(typed)}", flush=True)
            command = machines.command(0, [sys.executable, "-m", "tpi_bench", *typed])
            env = {**os.environ, "RAY_ADDRESS": machines.address}
            done = subprocess.run(command, check=False, timeout=_TWIN_WITHIN_S, env=env)
            if done.returncode:
                print(f"{name} ended with status {done.returncode}", file=sys.stderr)
                return done.returncode
        shutil.copytree(survey, folder / "survey", dirs_exist_ok=True)
        left = machines.left_over()
    print(f"left running on the machines: {len(left)}")
    return 1 if left else 0


def _cluster(machines: Machines) -> list[str]:
    return ["testbed=cluster", f"testbed.address={machines.address}", "testbed.num_devices=3"]


def _typed(machines: Machines, arguments: list[str], is_there: Callable[[], bool]) -> bool:
    """What is typed on the first machine, and what it prints; whether it has made what it should.

    An address of this try, and its folder, are of no use to who reads it.
    """
    start_s = time.monotonic()
    done = _run(machines, [*arguments, "progress=false"])
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    print(f"\npython -m tpi_bench {' '.join(arguments)}  ({time.monotonic() - start_s:.0f} s)")
    print(done.stdout.rstrip())
    return done.returncode == 0 and is_there()


def _answer(machines: Machines, *arguments: str) -> dict[str, Any]:
    """What the program answers on the first machine."""
    done = _run(machines, ["report=json", *POINT, *arguments])
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    lines = done.stdout.strip().splitlines() or ["{}"]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _run(machines: Machines, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = machines.command(0, [sys.executable, "-m", "tpi_bench", *arguments])
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_WITHIN_S)


if __name__ == "__main__":
    sys.exit(main())
