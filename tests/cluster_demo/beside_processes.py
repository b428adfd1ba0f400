"""Does a row of a cluster mean what one of `testbed=processes` means? Both in turns, same cores.

`python -m tests.cluster_demo.beside_processes` prints token latency of two machines on this host
over that of two processes, with a thread each and links as they are, and again under TLS.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence

from tests.cluster_demo import rows
from tests.cluster_demo.driver import Driver
from tests.cluster_demo.machines import Machines

POINT = (
    *("workload.num_new_tokens=32", "workload.ignore_eos=true", "testbed.threads_per_device=1"),
    *("prompt=What is the capital of France?", "testbed.num_devices=2"),
)
SYSTEMS = ("tpi", "tpi_direct", "pipeline")
KEPT = ("token_latency_s", "link_round_trip_s", "busy_cores_start", "steal_share")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("arguments", nargs="*", help="of tpi_bench, for all points")
    rows.add_argument(parser)
    asked = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    trips: dict[str, list[float]] = defaultdict(list)
    kept = rows.Rows(asked.rows)
    with Machines(2) as machines, tempfile.TemporaryDirectory(prefix="tpi_bench-") as scratch:
        driver = Driver(machines)
        try:
            ways = ways_of(machines, scratch)
            for repeat in range(asked.repeats):
                for system in SYSTEMS:
                    for way, own in ways.items():
                        typed = (*POINT, *own, f"system={system}", f"repeat={repeat}")
                        said = driver.run(*typed, *asked.arguments)
                        if said.get("status") != "ok":
                            raise RuntimeError(f"{' '.join(typed)}: {said}")
                        found[system, way].append(said["row"]["token_latency_s"])
                        trips[way].append(said["row"]["link_round_trip_s"])
                        cells = {name: said["row"][name] for name in KEPT}
                        kept.add(system=system, way=way, repeat=repeat, **cells)
        finally:
            driver.close()
    print("\n".join(lines_of(found, trips, list(ways))))
    return 0


def ways_of(machines: Machines, scratch: str) -> dict[str, tuple[str, ...]]:
    cluster = (
        *("testbed=cluster", f"testbed.address={machines.address}", "testbed.share_files=false"),
        f"testbed.node_cache_dir={scratch}/ADDRESS",
    )
    return {
        "processes": ("testbed=processes",),
        "cluster": cluster,
        "cluster, TLS": (*cluster, "network.tls=true"),
    }


def lines_of(
    found: dict[tuple[str, str], list[float]], trips: dict[str, list[float]], ways: Sequence[str]
) -> list[str]:
    """A line a system: median ms a token, and the median of its ratios to the first, in turns."""
    lines = [f"{'ms a token':14}" + "".join(f"{way:>28}" for way in ways)]
    for system in SYSTEMS:
        cells = []
        for way in ways:
            times, first = found[system, way], found[system, ways[0]]
            ratios = [one / other for one, other in zip(times, first, strict=True)]
            spread = f"{min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}"
            ratio = statistics.median(ratios)
            cells.append(f"{statistics.median(times) * 1e3:.2f} ({spread}) x{ratio:.3f}")
        lines.append(f"{system:14}" + "".join(f"{cell:>28}" for cell in cells))
    medians = [f"{statistics.median(trips[way]) * 1e6:.0f} us" for way in ways]
    lines.append(f"{'round trip':14}" + "".join(f"{cell:>28}" for cell in medians))
    return lines


if __name__ == "__main__":
    sys.exit(main())
