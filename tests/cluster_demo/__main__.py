"""`make cluster_demo`: a cluster of three machines on this host, a point over them, all taken down.

As root the machines are network namespaces, else addresses of loopback (`machines.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
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
    ("system=tpi", "model.weights=q4"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every variant, not only the first")
    parser.add_argument("arguments", nargs="*", help="of tpi_bench, for the points")
    asked = parser.parse_args()
    variants = VARIANTS if asked.all else VARIANTS[:1]
    start_s = time.monotonic()
    with Machines(3) as machines:
        kind = "network namespaces" if machines.has_links else "addresses of loopback"
        took_s = time.monotonic() - start_s
        print(f"three {kind} with Ray: {', '.join(machines.addresses)} ({took_s:.0f} s)")
        good = [_compare(machines, (*variant, *asked.arguments)) for variant in variants]
        left = machines.left_over()
        print(f"left running on the machines: {len(left)}")
    print("all taken down")
    return 0 if all(good) and not left else 1


def _compare(machines: Machines, variant: tuple[str, ...]) -> bool:
    """A point over the machines beside the same on one device; whether the tokens are equal."""
    alone = _answer(machines, "testbed=processes", "testbed.num_devices=1", *variant)
    folder = machines.folder / "blocks-ADDRESS"
    spread = _answer(
        machines,
        "testbed=cluster",
        f"testbed.address={machines.address}",
        "testbed.num_devices=3",
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


def _answer(machines: Machines, *arguments: str) -> dict[str, Any]:
    """What the program answers on the first machine."""
    command = [sys.executable, "-m", "tpi_bench", "report=json", *POINT, *arguments]
    done = subprocess.run(
        machines.command(0, command), capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    lines = done.stdout.strip().splitlines() or ["{}"]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
