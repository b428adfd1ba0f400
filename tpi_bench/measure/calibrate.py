"""What this host can do, as a device profile: `task=calibrate`, used by `device=this_host`.

Every number is the median of a few passes, with the least and the most. Kept in the cache; the
virtual testbed charges reads, messages and, for other devices' measured costs, their ratio by it.
All rates of computing are those of the engine's own products.
"""

from __future__ import annotations

import functools
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.contract.blocks import PAGE, Extent
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job, Output, Program
from tpi_bench.contract.model import GROUP, WEIGHTS, ModelConfig, resolve_types
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.setting import setting
from tpi_bench.host import cache, machine
from tpi_bench.host.fork import in_helper
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure.probe import read_all, seconds
from tpi_bench.processes.launcher import run_job

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime

_VERSION = 4  # goes up with what is measured: calibrations of an older kind are made again
_PASSES = 7
_MEMORY_BYTES = 128 << 20
_COLUMNS = 4096
_ROWS = 128  # of a prompt
_SWEPT_BYTES = 8 << 20
_SMALL_OPERATORS = 32
_DISK_BYTES = 256 << 20
_BLOCK_BYTES = 4 << 20
_QUEUE_DEPTH = 16
_SMALL_READS = 64


@dataclass(frozen=True, kw_only=True)
class ThisHost:
    """`device=this_host`: this machine as it was calibrated, with `threads` threads."""

    name: str = setting("this_host", "how rows call it")
    threads: int = setting(1, "threads that it was calibrated with")

    def load(self, cache_dir: Path) -> DeviceProfile:
        """The stored profile; calibrates first where there is none."""
        path = calibration_file(cache_dir)
        if not path.is_file():
            calibrate(cache_dir)
        found = json.loads(path.read_text())
        if str(self.threads) not in found["threads"]:
            raise ValueError(
                f"device.this_host.threads={self.threads} was not calibrated; choose one of "
                f"{', '.join(found['threads'])}"
            )
        return _profile(found, "this_host", str(self.threads), _memory_gb())


def read_profile(path: Path, name: str) -> DeviceProfile:
    """Of a machine, as a file that `task=calibrate` wrote there says, with all of its cores.

    Raises ValueError for a file that does not say it.
    """
    try:
        found = json.loads(path.read_text())
        threads = max(found["threads"], key=int)
        return _profile(found, name, threads, found["machine"]["memory_gb"])
    except OSError as error:
        raise ValueError(f"device={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"device={path} is no calibration of this version; give the file that "
            "python -m tpi_bench task=calibrate names on that machine"
        ) from error


def _profile(found: dict[str, Any], name: str, threads: str, memory_gb: float) -> DeviceProfile:
    """The medians that were found with so many threads."""
    values = {row["name"]: row["median"] for row in found["host"]}
    values |= {row["name"]: row["median"] for row in found["threads"][threads]}
    return DeviceProfile(
        name=name,
        cores=int(threads),
        memory_gb=memory_gb,
        disk_queue_depth=_QUEUE_DEPTH,
        source="task=calibrate",
        **values,
    )


def _memory_gb() -> float:
    import psutil

    return psutil.virtual_memory().total / 1e9


def calibration_file(cache_dir: Path) -> Path:
    """One a host."""
    return cache_dir / "hosts" / f"{machine.host_key()}-{_VERSION}.json"


def calibrate(cache_dir: Path) -> dict[str, Any]:
    """Measure, keep and return: rows of name, median, min and max, by number of threads."""
    cores = len(available_cpus())
    found: dict[str, Any] = {"threads": {}}
    for threads in sorted({1, cores}):
        found["threads"][str(threads)] = in_helper(_measure_compute, threads)
    found["host"] = [*in_helper(_measure_disk, cache_dir), _measure_messages()]
    found["machine"] = {"name": platform.node(), "memory_gb": _memory_gb()}
    path = calibration_file(cache_dir)
    with cache.locked(path):
        cache.write_json(path, found)
    return found


def calibration_text(found: dict[str, Any]) -> str:
    """The rows as a table."""
    lines = [f"{'':24}{'threads':>8}{'median':>10}{'min':>10}{'max':>10}"]
    for threads, rows in [*found["threads"].items(), ("-", found["host"])]:
        for row in rows:
            numbers = "".join(f"{row[name]:10.2f}" for name in ("median", "min", "max"))
            lines.append(f"{row['name']:24}{threads:>8}{numbers}")
    return "\n".join(lines)


def _row(name: str, values: Sequence[float]) -> dict[str, Any]:
    middle = statistics.median(values)
    return {"name": name, "median": middle, "min": min(values), "max": max(values)}


def _times(fn: Callable[[], object]) -> list[float]:
    """Seconds of a few calls, after one that does not count."""
    fn()
    return [seconds(fn) for _ in range(_PASSES)]


def _measure_compute(threads: int) -> list[dict[str, Any]]:
    """The engine's products with a vector and with a prompt's rows in each precision, and what an
    operator costs besides.
    """
    import torch

    from tpi_bench.engine.matrix import prepare_kernels

    torch.set_num_threads(threads)
    prepare_kernels()
    with torch.inference_mode():
        rows = [row for held in WEIGHTS for row in _measure_products(held)]
        return [*rows, _row("op_overhead_us", _overheads_us())]


def _measure_products(held: str) -> list[dict[str, Any]]:
    """Bytes a second of a matrix times one vector, operations a second of one times `_ROWS`.

    The matrix is not in a cache. Of the time of many rows what its bytes take is left out, at most
    half: the roofline adds it again (`contract/device.py`).
    """
    import torch

    from tpi_bench.engine.matrix import Matrix

    dtype = getattr(torch, resolve_types("auto", held)[0])
    tensors = _stored(held, _MEMORY_BYTES)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    matrix = Matrix(*map(_as_on_a_device, tensors))
    vector = torch.ones(1, _COLUMNS, dtype=dtype)
    reading = _times(functools.partial(matrix, vector))
    rows = torch.ones(_ROWS, _COLUMNS, dtype=dtype)
    reading_s = statistics.median(reading)
    both = _times(functools.partial(matrix, rows))
    computing = [max(taken - reading_s, taken / 2) for taken in both]
    flops = 2 * _ROWS * matrix.shape[0] * matrix.shape[1]
    names = ("memory_gb_per_s", "peak_gflops")
    if held != WEIGHTS[0]:
        names = (f"{held}_gb_per_s", f"{held}_gflops")
    return [
        _row(names[0], [nbytes / taken / 1e9 for taken in reading]),
        _row(names[1], [flops / taken / 1e9 for taken in computing]),
    ]


def _overheads_us() -> list[float]:
    """Of a small operator that follows a product, which leaves little of torch in the caches.

    One after the other a thousand would take a tenth of it.
    """
    import torch

    from tpi_bench.engine.matrix import Matrix

    product = Matrix(*_stored(WEIGHTS[0], _SWEPT_BYTES))
    vector, few = torch.ones(1, _COLUMNS), torch.ones(8)

    def small_s() -> float:
        product(vector)
        return seconds(lambda: torch.add(few, few))

    return [
        1e6 * statistics.median(small_s() for _ in range(_SMALL_OPERATORS)) for _ in range(_PASSES)
    ]


def _as_on_a_device(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory of the kind that weights of a device lie in: huge pages."""
    import torch

    from tpi_bench.host.memory import anonymous_area

    room = torch.from_numpy(anonymous_area(tensor.nbytes)).view(tensor.dtype).view(tensor.shape)
    return room.copy_(tensor)


def _stored(held: str, nbytes: int) -> list[torch.Tensor]:
    """A matrix of about so many bytes as block files hold it: its values, and scales if it has."""
    import torch

    shape = nbytes // _COLUMNS, _COLUMNS
    if held == "q8":
        scales = torch.ones(shape[0], _COLUMNS // GROUP, dtype=torch.float16)
        return [torch.ones(shape, dtype=torch.int8), scales]
    if held == "q4":
        scales = torch.ones(2 * shape[0], _COLUMNS // GROUP, dtype=torch.float16)
        return [torch.ones(2 * shape[0], _COLUMNS // 2, dtype=torch.uint8), scales]
    dtype: torch.dtype = getattr(torch, held)
    return [torch.ones(shape[0] // dtype.itemsize, _COLUMNS, dtype=dtype)]


def _measure_disk(cache_dir: Path) -> list[dict[str, Any]]:
    """Direct reads of a file written for it: blocks in a row, and single pages."""
    import numpy as np

    from tpi_bench.host.disk import DirectReader
    from tpi_bench.host.memory import anonymous_area

    cache.require_space(cache_dir, 2 * _DISK_BYTES, "calibrating the disk")
    path = cache_dir / ".calibration"
    starts = range(0, _DISK_BYTES, _BLOCK_BYTES)
    blocks = [Extent(str(path), start, _BLOCK_BYTES) for start in starts]
    pages = [Extent(str(path), start, PAGE) for start in starts][:_SMALL_READS]
    area = anonymous_area(_DISK_BYTES)
    area.fill(0)
    reader = DirectReader()

    def one_by_one() -> None:
        for page in pages:
            read_all(reader, [page], area)

    try:
        with path.open("wb") as file:
            file.write(np.random.default_rng(0).bytes(_DISK_BYTES))
        reader.open([str(path)])
        streaming = _times(lambda: read_all(reader, blocks, area))
        latency = _times(one_by_one)
    finally:
        reader.close()
        path.unlink(missing_ok=True)
    return [
        _row("disk_gb_per_s", [_DISK_BYTES / t / 1e9 for t in streaming]),
        _row("disk_latency_us", [t / _SMALL_READS * 1e6 for t in latency]),
    ]


@dataclass(frozen=True)
class _OnlyRoundTrips(Program):
    """Does nothing: devices measure round trips before they start a program."""

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation:
        return Generation(token_ids=[], request_ns=0, token_ns=[], account=[])


def _measure_messages() -> dict[str, Any]:
    """A quarter of a round trip: each way is sent and received, in two device processes."""
    config = ModelConfig(
        num_layers=1,
        hidden=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        intermediate=8,
        vocab=8,
        context_length=8,
    )
    job = Job(
        program=_OnlyRoundTrips(),
        config=config,
        dtype="float32",
        weights="float32",
        num_devices=2,
        plan=None,
        blocks=[],
        request=Request(prompt_ids=(0,), num_new_tokens=1),
        network=NetworkConfig(),
        threads_per_device=1,
    )
    outcome = run_job(job)
    if outcome.status != "ok":
        raise ValueError(f"the loopback could not be measured: {outcome.error}")
    return _row("message_overhead_us", [ns / 4e3 for ns in outcome.round_trips_ns])
