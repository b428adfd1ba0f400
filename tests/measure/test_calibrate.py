"""This host as a device profile: what is measured, and what is made of the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.calibration import HOST, PLAIN, keep
from tpi_bench.contract.model import WEIGHTS
from tpi_bench.host.fork import in_helper
from tpi_bench.measure import calibrate
from tpi_bench.measure.calibrate import ThisHost, calibration_file

RATES = {"q8_gb_per_s": 38.0, "q4_gb_per_s": 30.0, "bfloat16_gflops": 200.0}


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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less to read and to multiply."""
    sizes = {"_MEMORY_BYTES": 1 << 20, "_SWEPT_BYTES": 1 << 20, "_COLUMNS": 256, "_PASSES": 2}
    for name, value in (sizes | {"_DISK_BYTES": 16 << 20}).items():
        monkeypatch.setattr(calibrate, name, value)


def test_this_host_is_calibrated_when_it_is_first_asked_for(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is measured, in this process but for the messages; then it is found."""
    called: list[Any] = []

    def here(measure: Callable[..., Any], *given: Any) -> Any:
        called.append(measure)
        before = torch.get_num_threads()
        found = measure(*given)
        torch.set_num_threads(before)
        return found

    monkeypatch.setattr(calibrate, "in_helper", here)
    profile = ThisHost().load(tmp_path)
    measured = json.loads(calibration_file(tmp_path).read_text())
    assert set(measured["threads"]) == {"1", str(len(calibrate.available_cpus()))}
    assert [row["name"] for row in measured["host"]] == list(HOST)
    assert profile.disk_bps > 0
    assert 0 < profile.message_overhead_us < 1e5
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]  # its file for reads is gone
    assert called.count(calibrate._measure_disk) == 1
    assert ThisHost().load(tmp_path) == profile
    assert called.count(calibrate._measure_disk) == 1


def test_what_is_measured_comes_from_a_process_of_its_own() -> None:
    assert in_helper(calibrate._overheads_us)[0] > 0


def test_products_are_measured_in_every_precision(small: None) -> None:
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
