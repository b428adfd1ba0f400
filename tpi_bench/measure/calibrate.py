"""What this host can do, as a device profile: `task=calibrate`, used by `device=this_host`.

Everything is measured in rounds, one after the other: a number of the profile is their median, a
rate of the disk their mean (see `typical`). The rounds are kept, since a host drifts: what devices
as fast as in each of them would do is an interval for what this host will do (`testbed.interval`),
with what runs of the engine in that round took besides (`residuals.py`).
Of nine rounds of the same kind, the least and the most enclose a tenth in 8 of 10 cases.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.model import WEIGHTS
from tpi_bench.contract.rounds import RESIDUALS
from tpi_bench.contract.setting import setting
from tpi_bench.host import cache, machine
from tpi_bench.host.fork import in_helper
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure.core_rates import compute_rates, shared_memory_rate
from tpi_bench.measure.disk_rates import disk_rates
from tpi_bench.measure.paging_rate import paging_rate
from tpi_bench.measure.program_costs import engine_runs, program_costs
from tpi_bench.measure.residuals import residuals, shared_disk_rate
from tpi_bench.measure.waits import wait_costs

NUM_ROUNDS = 9
_VERSION = 17  # goes up with what is measured: calibrations of an older kind are made again
_QUEUE_DEPTH = 16
_FEW_ROUNDS = 2  # all of them count
_IN_TURNS = ("float32", "bfloat16", "q8", "q4")  # what weights of runs are held in


@dataclass(frozen=True, kw_only=True)
class ThisHost:
    """`device=this_host`: this machine as it was calibrated, with `threads` threads."""

    name: str = setting("this_host", "how rows call it")
    threads: int = setting(1, "threads that it was calibrated with")

    def load(self, cache_dir: Path) -> DeviceProfile:
        """The stored profile; calibrates first where there is none."""
        found = self._found(cache_dir)
        if str(self.threads) not in found["threads"]:
            raise ValueError(
                f"device.this_host.threads={self.threads} was not calibrated; choose one of "
                f"{', '.join(found['threads'])}"
            )
        return profile_of(found, "this_host", str(self.threads), _memory_gb())

    def most_threads(self, cache_dir: Path) -> int:
        """That it was calibrated with: one a core."""
        return max(map(int, self._found(cache_dir)["threads"]))

    def _found(self, cache_dir: Path) -> dict[str, Any]:
        path = calibration_file(cache_dir)
        if not path.is_file():
            print(
                "device=this_host has not been calibrated: it is now, once, which takes about "
                "five minutes; leave the machine alone",
                file=sys.stderr,
            )
            calibrate(cache_dir)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def read_profile(path: Path, name: str) -> DeviceProfile:
    """Of a machine, as a file that `task=calibrate` wrote there says, with all of its cores.

    Raises ValueError for a file that does not say it.
    """
    try:
        found = json.loads(path.read_text())
        threads = max(found["threads"], key=int)
        return profile_of(found, name, threads, found["machine"]["memory_gb"])
    except OSError as error:
        raise ValueError(f"device={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"device={path} is no calibration of this version; give the file that "
            "python -m tpi_bench task=calibrate names on that machine"
        ) from error


def profile_of(found: dict[str, Any], name: str, threads: str, memory_gb: float) -> DeviceProfile:
    """What is typical with so many threads, and the rounds that it is of."""
    rows = [*found["host"], *found["threads"][threads]]
    named = [[(row["name"], value) for value in row["rounds"]] for row in rows]
    typically = {row["name"]: row["typical"] for row in rows if row["name"] not in RESIDUALS}
    rounds = tuple(zip(*named, strict=True))
    return replace(_profile(int(threads), typically), name=name, memory_gb=memory_gb, rounds=rounds)


def _profile(cores: int, found: Mapping[str, float]) -> DeviceProfile:
    """What these numbers say of this host."""
    return DeviceProfile(
        name="this_host",
        cores=cores,
        memory_gb=_memory_gb(),
        disk_queue_depth=_QUEUE_DEPTH,
        source="task=calibrate",
        **found,  # type: ignore[arg-type]  # all of them are rates and times
    )


def _memory_gb() -> float:
    import psutil

    return psutil.virtual_memory().total / 1e9


def calibration_file(cache_dir: Path) -> Path:
    """One a host."""
    return cache_dir / "hosts" / f"{machine.host_key()}-{_VERSION}.json"


def calibrate(
    cache_dir: Path, num_rounds: int = NUM_ROUNDS, threads_of_share: int = 1
) -> dict[str, Any]:
    """Measure, keep and return: rows of name, typical, min, max and rounds, by number of threads.

    With one, with as many as there are cores, and with those of a share of the machine.
    """
    path = calibration_file(cache_dir)
    with cache.locked(path):  # refuses where it could not be kept, before it takes minutes
        pass
    numbers = sorted({1, threads_of_share, len(available_cpus())})
    counted = tqdm(
        range(num_rounds), "calibrating this host", unit="round", disable=cache.bars_hidden()
    )
    rounds = [_round(cache_dir, numbers, _IN_TURNS[n % len(_IN_TURNS)]) for n in counted]
    threads = [name for name in rounds[0] if name != "host"]
    found = {
        "threads": {name: _rows([each[name] for each in rounds]) for name in threads},
        "host": _rows([each["host"] for each in rounds]),
        "machine": {"name": platform.node(), "memory_gb": _memory_gb()},
    }
    with cache.locked(path):
        cache.write_json(path, found)
    return found


def _round(
    cache_dir: Path, numbers: Sequence[int], weights: str = WEIGHTS[0]
) -> dict[str, dict[str, float]]:
    """Everything once: rates of cores by their number, then what belongs to the host. What virtual
    time misses is that of runs with weights held in `weights`.
    """
    found = {str(threads): in_helper(compute_rates, threads) for threads in numbers}
    runs = engine_runs(cache_dir, weights)
    of_disk = disk_rates(cache_dir) | paging_rate(cache_dir)
    of_host = shared_memory_rate() | of_disk | program_costs(runs) | wait_costs(cache_dir)
    if len(available_cpus()) > 1:
        of_host |= shared_disk_rate(runs.streamed, _profile(1, found["1"] | of_host), cache_dir)
    of_host |= residuals(runs, _profile(1, found["1"] | of_host), cache_dir)
    return found | {"host": of_host}


def typical(name: str, values: Sequence[float]) -> float:
    """Of a number's rounds: their median. Of the disk's rates the mean of the time that a byte
    takes, without the least and the most.

    A run of ours read two thirds of its tokens at 2.2 GB/s and a third at 1.5, by stretches of half
    a second: what reads has both, and a median has one.
    """
    if not name.startswith("disk_") or not name.endswith("gb_per_s"):
        return statistics.median(values)
    kept = sorted(values)[1:-1] if len(values) > _FEW_ROUNDS else values
    return statistics.harmonic_mean(kept)


def _rows(rounds: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "typical": typical(name, values),
            "min": min(values),
            "max": max(values),
            "rounds": values,
        }
        for name in rounds[0]
        for values in [[each[name] for each in rounds]]
    ]


def calibration_text(found: dict[str, Any]) -> str:
    """The rows as a table."""
    parts = [*found["threads"].items(), ("-", found["host"])]
    width = max((len(row["name"]) for _, rows in parts for row in rows), default=0)
    lines = [f"{'':{width}}{'threads':>8}{'typical':>10}{'min':>10}{'max':>10}"]
    for threads, rows in parts:
        for row in rows:
            numbers = "".join(f"{row[name]:10.2f}" for name in ("typical", "min", "max"))
            lines.append(f"{row['name']:{width}}{threads:>8}{numbers}")
    return "\n".join(lines)
