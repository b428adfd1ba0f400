"""This host as a device profile: what is measured, and what is made of the file that keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tpi_bench.contract.model import WEIGHTS
from tpi_bench.measure import calibrate
from tpi_bench.measure.calibrate import ThisHost, calibration_file

HOST = {"disk_gb_per_s": 2.0, "disk_latency_us": 80.0, "message_overhead_us": 12.0}
PLAIN = {"memory_gb_per_s": 40.0, "peak_gflops": 90.0, "op_overhead_us": 1.0}
RATES = {"q8_gb_per_s": 38.0, "q4_gb_per_s": 30.0, "bfloat16_gflops": 200.0}


def rows_of(values: dict[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "median": value, "min": 0, "max": 0} for name, value in values.items()]


def keep(cache_dir: Path, **threads: dict[str, float]) -> None:
    path = calibration_file(cache_dir)
    path.parent.mkdir()
    kept = {number.removeprefix("t"): rows_of(values) for number, values in threads.items()}
    path.write_text(json.dumps({"threads": kept, "host": rows_of(HOST)}))


def test_the_profile_has_what_was_measured_with_so_many_threads(tmp_path: Path) -> None:
    keep(tmp_path, t1=PLAIN, t2=PLAIN | RATES | {"memory_gb_per_s": 50.0})
    one, two = (ThisHost(threads=threads).load(tmp_path) for threads in (1, 2))
    assert (one.cores, two.cores) == (1, 2)
    assert one.disk_gb_per_s == 2.0
    assert [one.read_bps(held) for held in ("float32", "q8", "q4")] == [40e9] * 3
    assert [two.read_bps(held) for held in ("float32", "q8", "q4")] == [50e9, 38e9, 30e9]
    assert (two.flops_per_s("bfloat16"), two.flops_per_s("q4")) == (200e9, 90e9)
    with pytest.raises(ValueError, match=r"this_host\.threads=3 was not calibrated; .* 1, 2"):
        ThisHost(threads=3).load(tmp_path)


def test_its_file_is_a_device_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all cores of the machine, and the memory that it has."""
    monkeypatch.setattr(calibrate, "available_cpus", lambda: {0, 1})
    measured = {"_measure_compute": PLAIN, "_measure_disk": HOST}
    monkeypatch.setattr(calibrate, "in_helper", lambda fn, *given: rows_of(measured[fn.__name__]))
    monkeypatch.setattr(calibrate, "_measure_messages", lambda: rows_of({"other": 1.0})[0])
    found = calibrate.calibrate(tmp_path)
    found["host"].pop()  # the messages are among what `HOST` has
    path = tmp_path / "laptop.json"
    path.write_text(json.dumps(found))
    profile = calibrate.read_profile(path, "laptop")
    assert (profile.name, profile.cores) == ("laptop", 2)
    assert (profile.memory_gb_per_s, profile.disk_gb_per_s) == (40.0, 2.0)
    assert profile.memory_gb == found["machine"]["memory_gb"] > 0.5


def test_products_are_measured_in_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"_MEMORY_BYTES": 1 << 20, "_SWEPT_BYTES": 1 << 20, "_COLUMNS": 256, "_PASSES": 2}
    for name, value in small.items():
        monkeypatch.setattr(calibrate, name, value)
    num_threads = torch.get_num_threads()
    rows = calibrate._measure_compute(1)
    torch.set_num_threads(num_threads)
    of_precisions = [f"{w}_{unit}" for w in WEIGHTS[1:] for unit in ("gb_per_s", "gflops")]
    names = ["memory_gb_per_s", "peak_gflops", *of_precisions, "op_overhead_us"]
    assert [row["name"] for row in rows] == names
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in rows)


def test_the_time_of_bytes_is_left_out_of_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes 1 s and many rows 3, so that their arithmetic takes 2; at least half of it."""
    monkeypatch.setattr(calibrate, "_MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(calibrate, "_COLUMNS", 256)
    monkeypatch.setattr(calibrate, "_ROWS", 10)
    flops = 2 * 10 * (1 << 18)
    for both_s, computing_s in ((3.0, 2.0), (1.5, 0.75)):
        times = iter([[1.0], [both_s]])
        monkeypatch.setattr(calibrate, "_times", lambda fn, times=times: next(times))
        reading, computing = calibrate._measure_products("float32")
        assert reading["median"] == (1 << 20) / 1e9
        assert computing["median"] == flops / computing_s / 1e9


@pytest.mark.parametrize("held", WEIGHTS)
def test_what_is_multiplied_has_the_bytes_that_were_asked_for(held: str) -> None:
    tensors = calibrate._stored(held, 1 << 22)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    assert 1 << 22 <= nbytes < 1.2 * (1 << 22)  # scales come on top
