"""This host's profile brought up to date right before a point."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.calibration import PLAIN, keep
from tests.helpers.settings import settings_of
from tpi_bench.contract.rounds import in_round
from tpi_bench.engine.matrix import Matrix
from tpi_bench.measure import core_rates, followed
from tpi_bench.measure.calibrate import ThisHost, calibration_file
from tpi_bench.measure.core_rates import product_rates
from tpi_bench.measure.followed import at_rates, brought_up_to_date
from tpi_bench.measure.matrices import shapes_of
from tpi_bench.measure.point import measure
from tpi_bench.measure.prepare import Prepared, prepare
from tpi_bench.measure.probe import DiskPasses, disk_passes

RATES = PLAIN | {"float32_few_gflops": 60.0}
STREAMS = (
    *("system=tpi_window2", "workload.prompt_tokens=4", "workload.num_new_tokens=4"),
    *("model=debug", "device=this_host", "testbed.num_devices=1"),
)


@pytest.fixture(autouse=True)
def _found_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another has measured."""
    monkeypatch.setattr(followed, "_found", {})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple[Any, ...]]]:
    """What was measured: a disk of 1 GB/s on average and 1.25 in the best pass, half of the
    products that were calibrated.
    """
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    def in_helper(fn: Any, *given: Any) -> Any:
        calls.append((fn, given))
        if fn is disk_passes:
            return DiskPasses(10**9, [0.8, 1.3, 0.9])
        assert fn is product_rates
        return {"memory_gb_per_s": 20.0, "peak_gflops": 45.0, "float32_few_gflops": 60.0}

    monkeypatch.setattr(followed, "in_helper", in_helper)
    return calls


def kept(folder: Path, **host: float) -> None:
    """A calibration whose probes of the disk were 2, 4 and 3 GB/s beside its three rounds."""
    keep(folder, t1=RATES)
    path = calibration_file(folder)
    found = json.loads(path.read_text())
    probes = {"name": "disk_probe_gb_per_s", "typical": 3.0, "rounds": [2.0, 4.0, 3.0]}
    more = [{"name": name, "typical": v, "rounds": [v] * 3} for name, v in host.items()]
    found["host"] += [probes, *more]
    path.write_text(json.dumps(found))


def prepared(folder: Path, *overrides: str) -> Prepared:
    return prepare(settings_of(*STREAMS, *overrides, f"cache_dir={folder}"))


def test_rates_move_by_what_was_measured_again(tmp_path: Path) -> None:
    """A round's disk goes with the probe beside it; other rates with the median of their rounds."""
    kept(tmp_path, disk_shared_gb_per_s=6.0, disk_gap_us=90.0)
    profile = ThisHost().load(tmp_path)
    now = at_rates(profile, {"disk_probe_gb_per_s": 1.0, "peak_gflops": 45.0, "unknown": 1.0})
    rounds = [in_round(now, number) for number in range(3)]
    assert [each.disk_gb_per_s for each in rounds] == pytest.approx([2 / 2, 1.8 / 4, 2.2 / 3])
    assert [each.disk_shared_gb_per_s for each in rounds] == pytest.approx([6 / 2, 6 / 4, 6 / 3])
    assert [each.peak_gflops for each in rounds] == pytest.approx([45, 40.5, 49.5])
    assert now.disk_gb_per_s == pytest.approx(2.2 / 3)
    assert (now.disk_shared_gb_per_s, now.peak_gflops) == (2.0, 45.0)
    assert (now.disk_probe_gb_per_s, rounds[0].disk_probe_gb_per_s) == (1.0, 1.0)
    assert now.disk_gap_us == 90.0
    assert now.memory_gb_per_s == profile.memory_gb_per_s


def test_a_disk_whose_probe_is_not_known_is_as_it_was_calibrated(tmp_path: Path) -> None:
    keep(tmp_path, t1=RATES)
    profile = ThisHost().load(tmp_path)
    assert at_rates(profile, {"disk_probe_gb_per_s": 1.0}) == profile


def test_a_point_has_the_disk_and_the_products_of_now(tmp_path: Path, asked: list) -> None:
    kept(tmp_path)
    processes = prepared(tmp_path, "testbed=processes")
    twin = prepared(tmp_path, "testbed=twin")
    now, probed = brought_up_to_date(twin)
    assert probed is not None
    assert (probed.disk_bps, math.isnan(probed.memory_bps)) == (1.25e9, True)
    (device,) = now.job.profiles
    assert device.disk_gb_per_s == pytest.approx(2.2 / 3)
    assert (device.memory_gb_per_s, device.peak_gflops) == (20.0, 45.0)
    assert now.job == replace(twin.job, profiles=(device,))
    (_, (extents, _)), (_, (threads, held, _, shapes)) = asked
    paths = {block.path for own in processes.job.blocks for block in own}
    assert extents
    assert {extent.path for extent in extents} <= paths
    assert (threads, held) == (1, "float32")
    config = twin.job.config
    assert shapes == (
        (config.hidden, config.num_heads * config.head_dim),
        ((config.num_heads + 2 * config.num_kv_heads) * config.head_dim, config.hidden),
        (config.hidden, config.intermediate),
        (2 * config.intermediate, config.hidden),
    )


def test_twins_one_after_the_other_are_of_one_moment(
    tmp_path: Path, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one whose computations are measured, which needs no product; later it is asked
    again.
    """
    kept(tmp_path)
    measured = prepared(tmp_path, "testbed=twin_measured")
    brought_up_to_date(measured)
    assert [fn for fn, _ in asked] == [disk_passes]
    for _ in range(2):
        brought_up_to_date(prepared(tmp_path, "testbed=twin"))
    assert [fn for fn, _ in asked] == [disk_passes, product_rates]
    monkeypatch.setattr(followed, "_VALID_S", 0.0)
    brought_up_to_date(measured)
    assert [fn for fn, _ in asked] == [disk_passes, product_rates, disk_passes]


def test_predicting_makes_no_files(tmp_path: Path, asked: list) -> None:
    kept(tmp_path)
    now, probed = brought_up_to_date(prepared(tmp_path, "testbed=twin"))
    assert [fn for fn, _ in asked] == [product_rates]
    assert not list(tmp_path.rglob("*.safetensors"))
    assert probed is not None
    assert math.isnan(probed.disk_bps)
    assert now.job.profiles[0].disk_gb_per_s == 2.0


@pytest.mark.parametrize("overrides", [("testbed=virtual",), ("device=dell_i7_1165g7",)])
def test_who_is_not_this_host_is_left_alone(
    overrides: tuple[str, ...], tmp_path: Path, asked: list
) -> None:
    kept(tmp_path)
    point = prepared(tmp_path, "testbed=twin", *overrides)
    assert brought_up_to_date(point) == (point, None)
    assert asked == []


def test_two_devices_share_the_memory_of_now(
    tmp_path: Path, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path, memory_shared_gb_per_s=60.0)
    two = ("testbed=twin_measured", "testbed.num_devices=2")
    monkeypatch.setattr(followed, "shared_memory_rate", lambda: {"memory_shared_gb_per_s": 30.0})
    found, _ = brought_up_to_date(prepared(tmp_path, *two))
    assert [each.memory_shared_gb_per_s for each in found.job.profiles] == [30.0, 30.0]

    def busy() -> dict[str, float]:
        raise ValueError("something else keeps it busy")

    monkeypatch.setattr(followed, "_found", {})
    monkeypatch.setattr(followed, "shared_memory_rate", busy)
    found, _ = brought_up_to_date(prepared(tmp_path, *two))
    assert [each.memory_shared_gb_per_s for each in found.job.profiles] == [60.0, 60.0]


def test_a_row_has_the_disk_that_was_found(tmp_path: Path, asked: list) -> None:
    """A disk of a third takes three times as long."""
    kept(tmp_path)
    prepared(tmp_path, "testbed=processes")  # its block files
    rows = {
        follows: measure(prepared(tmp_path, "testbed=twin", f"testbed.follows_host={follows}")).run
        for follows in (True, False)
    }
    assert (rows[True].disk_bps_start, rows[True].disk_bps) == (1.25e9, pytest.approx(2.2e9 / 3))
    assert math.isnan(rows[False].disk_bps_start)
    assert rows[False].disk_bps == 2e9
    assert rows[True].token_latency_s > rows[False].token_latency_s


def test_products_of_a_moment_are_those_of_a_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_rates, "_MEMORY_BYTES", 1 << 19)
    monkeypatch.setattr(core_rates, "_MATRIX_BYTES", 1 << 18)
    num_threads = torch.get_num_threads()
    found = product_rates(1, "q8", 1.0, [])
    torch.set_num_threads(num_threads)
    assert set(found) == {"q8_gb_per_s", "q8_gflops", "q8_rows_gb_per_s", "q8_few_gflops"}


def test_products_are_of_the_shapes_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two matrices (o, i) in turns, in 4 bit: 0.5 bytes a value and a scale for 32 of them."""
    monkeypatch.setattr(core_rates, "_MEMORY_BYTES", 14 * (2 + 2) * 4096)  # and scales
    asked: dict[int, list[tuple[int, int]]] = {}

    def call_s(matrices: list[Matrix], held: str, num_rows: int) -> float:
        shapes = [matrix.shape for matrix in matrices]
        asked.setdefault(num_rows, shapes)
        return num_rows * 1e-3 if shapes == asked[num_rows] else 1.0

    monkeypatch.setattr(core_rates, "_call_s", call_s)
    num_threads = torch.get_num_threads()
    found = product_rates(1, "q4", 0.0, [(96, 64), (32, 96)])
    torch.set_num_threads(num_threads)
    num_values = (96 * 64 + 32 * 96) / 2
    assert asked[1] == asked[8] == [(96, 64), (32, 96)] * 14
    assert asked[128] == [(96, 64), (32, 96)] * 4
    assert found["q4_gb_per_s"] == pytest.approx((4 << 20) * (1 + 2 / 16) / 1e9)  # of large ones
    nbytes = num_values * (0.5 + 2 / 32)
    assert found["q4_rows_gb_per_s"] == pytest.approx(nbytes / (16e-3 / 2) / 1e9)
    assert found["q4_gflops"] == pytest.approx(2 * num_values / 1e-3 / 1e9)


def test_of_large_matrices_the_first_rows_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a share of what is read: 2 KB are 4 rows of 512 bytes, or 2 of 1,024."""
    monkeypatch.setattr(core_rates, "_MEMORY_BYTES", 4096)
    asked: list[tuple[int, int]] = []

    def call_s(matrices: list[Matrix], held: str, num_rows: int) -> float:
        asked.extend(matrix.shape for matrix in matrices)
        return num_rows * 1e-3

    monkeypatch.setattr(core_rates, "_call_s", call_s)
    num_threads = torch.get_num_threads()
    product_rates(1, "float32", 0.0, [(1000, 128), (1000, 256)])
    torch.set_num_threads(num_threads)
    assert asked[:2] == [(4, 128), (2, 256)]


def test_matrices_have_one_shape_in_every_precision(tmp_path: Path) -> None:
    """Two values lie in a byte of 4 bit."""
    kept(tmp_path)
    shapes = [
        sorted(shapes_of(prepared(tmp_path, f"model.weights={held}", "testbed=twin").job))
        for held in ("float32", "q8", "q4")
    ]
    assert len(shapes[0]) == 4
    assert shapes[1:] == shapes[:1] * 2
