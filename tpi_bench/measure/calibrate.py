"""What this host can do, as a device profile: `task=calibrate`, used by `device=this_host`.

Every number is the median of a few passes, with the least and the most. Kept in the cache; the
virtual testbed charges reads, messages and, for other devices' measured costs, their ratio by it.
Rates of half precision and of quantised weights are those of the engine's own products.
"""

from __future__ import annotations

import functools
import json
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

_VERSION = 2  # goes up with what is measured: calibrations of an older kind are made again
_PASSES = 7
_MEMORY_BYTES = 128 << 20
_COLUMNS = 4096
_SQUARE = 1024
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
        import psutil

        values = {row["name"]: row["median"] for row in found["host"]}
        values |= {row["name"]: row["median"] for row in found["threads"][str(self.threads)]}
        return DeviceProfile(
            name="this_host",
            cores=self.threads,
            memory_gb=psutil.virtual_memory().total / 1e9,
            disk_queue_depth=_QUEUE_DEPTH,
            source="task=calibrate",
            **values,
        )


def calibration_file(cache_dir: Path) -> Path:
    """One a host."""
    return cache_dir / "hosts" / f"{machine.host_key()}-{_VERSION}.json"


def calibrate(cache_dir: Path) -> dict[str, Any]:
    """Measure, keep and return: rows of name, median, min and max, by number of threads."""
    cores = len(available_cpus())
    found: dict[str, Any] = {"threads": {}}
    for threads in sorted({1, cores}):
        rows = [*in_helper(_measure_compute, threads), *in_helper(_measure_products, threads)]
        found["threads"][str(threads)] = rows
    found["host"] = [*in_helper(_measure_disk, cache_dir), _measure_messages()]
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
    """Memory bandwidth as a product of a large matrix and a vector sees it, GEMM, overhead."""
    import torch

    torch.set_num_threads(threads)
    with torch.inference_mode():
        matrix = torch.ones(8, _MEMORY_BYTES // 4 // 8 // 1024, 1024)
        column = torch.ones(8, 1, 1024).transpose(1, 2)
        memory = _times(lambda: torch.bmm(matrix, column))
        square = torch.ones(_SQUARE, _SQUARE)
        gemm = _times(lambda: square @ square)
        few = torch.ones(8)

        def many() -> None:
            for _ in range(1000):
                torch.add(few, few)

        overhead = _times(many)
    return [
        _row("memory_gb_per_s", [matrix.nbytes / t / 1e9 for t in memory]),
        _row("peak_gflops", [2 * _SQUARE**3 / t / 1e9 for t in gemm]),
        _row("op_overhead_us", [t * 1e3 for t in overhead]),
    ]


def _measure_products(threads: int) -> list[dict[str, Any]]:
    """The engine's products with a vector and with many, for each precision but fp32."""
    import torch

    from tpi_bench.engine.matrix import Matrix, prepare_kernels

    torch.set_num_threads(threads)
    prepare_kernels()
    rows = []
    with torch.inference_mode():
        for held in WEIGHTS[1:]:
            dtype = getattr(torch, resolve_types("auto", held)[0])
            tensors = _stored(held, _MEMORY_BYTES)
            nbytes = sum(tensor.nbytes for tensor in tensors)
            large, vector = Matrix(*tensors), torch.ones(1, _COLUMNS, dtype=dtype)
            reading = _times(functools.partial(large, vector))
            num_rows = _SQUARE * _SQUARE // _COLUMNS
            small = Matrix(*(tensor[:num_rows] for tensor in tensors))
            many = torch.ones(_SQUARE, _COLUMNS, dtype=dtype)
            computing = _times(functools.partial(small, many))
            rows.append(_row(f"{held}_gb_per_s", [nbytes / t / 1e9 for t in reading]))
            rows.append(_row(f"{held}_gflops", [2 * _SQUARE**3 / t / 1e9 for t in computing]))
    return rows


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
    return [torch.ones(shape[0] // 2, _COLUMNS, dtype=getattr(torch, held))]


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
