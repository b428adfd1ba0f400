"""A calibration of this host with made-up figures, for tests of what is made of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tpi_bench.measure.calibrate import calibration_file

HOST = {"disk_gb_per_s": 2.0, "disk_latency_us": 80.0, "message_overhead_us": 12.0}
PLAIN = {"memory_gb_per_s": 40.0, "peak_gflops": 90.0, "op_overhead_us": 1.0}


def rows_of(values: dict[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "median": value, "min": 0, "max": 0} for name, value in values.items()]


def keep(cache_dir: Path, **threads: dict[str, float]) -> None:
    """As `task=calibrate` leaves it: `t1` are the figures of one thread."""
    path = calibration_file(cache_dir)
    path.parent.mkdir()
    kept = {number.removeprefix("t"): rows_of(values) for number, values in threads.items()}
    path.write_text(json.dumps({"threads": kept, "host": rows_of(HOST)}))
