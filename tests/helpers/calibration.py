"""A calibration of this host that nobody has measured: it takes minutes to measure one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tpi_bench.measure.calibrate import calibration_file

HOST = {"disk_gb_per_s": 2.0, "disk_latency_us": 80.0, "message_overhead_us": 12.0}
PLAIN = {"memory_gb_per_s": 40.0, "peak_gflops": 90.0, "op_overhead_us": 1.0}


def keep(cache_dir: Path, **threads: dict[str, float]) -> None:
    """Rates with `t1` thread, `t2` threads ... where `device=this_host` looks for them."""
    path = calibration_file(cache_dir)
    path.parent.mkdir(exist_ok=True)
    kept = {number.removeprefix("t"): _rows(values) for number, values in threads.items()}
    path.write_text(json.dumps({"threads": kept, "host": _rows(HOST)}))


def _rows(values: dict[str, float]) -> list[dict[str, Any]]:
    """Three rounds, of which the second is a tenth slower and the third a tenth faster."""
    return [
        {"name": name, "typical": v, "min": 0, "max": 0, "rounds": [v, 0.9 * v, 1.1 * v]}
        for name, v in values.items()
    ]
