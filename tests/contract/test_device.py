"""Device profiles: the roofline and lists of devices, against hand-made sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tpi_bench.contract.device import (
    DeviceProfile,
    ideal_device,
    profile_names,
    profiles_for,
)
from tpi_bench.contract.model import DTYPES
from tpi_bench.contract.roofline import Operator, work_ns

US = 1_000
YAMLS = sorted((Path(__file__).resolve().parents[2] / "conf" / "device").glob("*.yaml"))


def test_an_operator_takes_the_longer_of_bytes_and_operations() -> None:
    """2 GB/s and 4 GFLOPS: 100 bytes are 50 ns, 1,000 operations 250 ns."""
    profile = replace(ideal_device(), memory_gb_per_s=2, peak_gflops=4)
    small, large = Operator(0, 100), Operator(1000, 100)
    assert work_ns(profile, (small,)) == 50
    assert work_ns(profile, (large,)) == 250
    assert work_ns(profile, (large, small)) == 300  # one after another
    assert work_ns(profile, ()) == 0


def test_a_product_with_many_rows_takes_both() -> None:
    """50 ns of reading and 250 of computing: one row 250, nine rows 300."""
    profile = replace(ideal_device(), memory_gb_per_s=2, peak_gflops=4)
    one, nine = (Operator(1000, 100, "float32", "float32", rows) for rows in (1, 9))
    assert [work_ns(profile, (one,)), work_ns(profile, (nine,))] == [250, 300]


def test_many_rows_come_from_memory_at_its_rate_and_weights_at_theirs() -> None:
    """100 bytes of weights at 1 GB/s, 300 of rows at 2: before 250 ns of computing."""
    profile = replace(ideal_device(), memory_gb_per_s=2, peak_gflops=4, q4_rows_gb_per_s=1)
    work = (Operator(1000, 400, "q4", "float32", 9, state_bytes=300),)
    assert work_ns(profile, work) == 100 + 150 + 250


def test_attention_of_many_queries_has_a_rate_of_its_own() -> None:
    """1,000 operations at 2 GFLOPS, or at the peak of 4, and 100 bytes at 2 GB/s, or laid out anew
    at 1; half of the cores compute half as fast.
    """
    profile = replace(ideal_device(), cores=2, memory_gb_per_s=2, peak_gflops=4)
    given = replace(profile, bfloat16_attention_gflops=2)
    works = [(Operator(1000, 100, None, dtype, attention="prefill"),) for dtype in DTYPES]
    assert [work_ns(profile, work) for work in works] == [250 + 50] * 3
    assert [work_ns(given, work) for work in works] == [300, 300, 500 + 50]
    assert work_ns(replace(given, used_cores=1), works[2]) == 1000 + 50
    assert work_ns(replace(given, bfloat16_rows_gb_per_s=1), works[2]) == 500 + 100


def test_attention_of_one_position_takes_both_where_its_rate_is_given() -> None:
    """1,000 operations at 4 GFLOPS or the 100 bytes at 2 GB/s, or 1,000 at 2 besides the bytes;
    half of the cores compute half as fast, and rates of a prompt change nothing.
    """
    profile = replace(ideal_device(), cores=2, memory_gb_per_s=2, peak_gflops=4)
    given = replace(profile, bfloat16_decode_attention_gflops=2, bfloat16_attention_gflops=1)
    works = [(Operator(1000, 100, None, dtype, attention="decode"),) for dtype in DTYPES]
    assert [work_ns(profile, work) for work in works] == [250] * 3
    assert [work_ns(given, work) for work in works] == [250, 250, 500 + 50]
    assert work_ns(replace(given, used_cores=1), works[2]) == 1000 + 50


def test_states_pass_at_a_rate_of_their_own() -> None:
    """100 bytes at memory's 2 GB/s, or at 1 of bfloat16; attention's are others. Half of the cores
    pass half.
    """
    profile = replace(ideal_device(), cores=4, memory_gb_per_s=2, peak_gflops=4)
    given = replace(profile, bfloat16_states_gb_per_s=1)
    works = [(Operator(0, 100, None, dtype),) for dtype in DTYPES]
    assert [work_ns(profile, work) for work in works] == [50] * 3
    assert [work_ns(given, work) for work in works] == [50, 50, 100]
    assert work_ns(replace(given, used_cores=2), works[2]) == 200
    assert work_ns(given, (Operator(0, 100, None, "bfloat16", attention="decode"),)) == 50


def test_a_product_with_a_few_rows_is_that_of_one_and_the_arithmetic_of_the_others() -> None:
    """Of 50 ns of reading, at a rate that more rows do not have, and 20 of computing a row: one row
    50, five 130, eight 190. Where a row computes for 125 ns, two take 250.
    """
    profile = replace(ideal_device(), memory_gb_per_s=2, peak_gflops=4, float32_rows_gb_per_s=0.001)
    found = [
        work_ns(profile, (Operator(80 * rows, 100, "float32", "float32", rows),))
        for rows in (1, 5, 8)
    ]
    assert found == [50, 130, 190]
    assert work_ns(profile, (Operator(1000, 100, "float32", "float32", 2),)) == 250
    slower = replace(profile, q4_few_gflops=1, q4_gflops=9)  # of 4 further rows 80 each
    assert work_ns(slower, (Operator(400, 100, "q4", "float32", 5),)) == 50 + 4 * 80


def test_rates_are_those_of_the_precision() -> None:
    """Memory gives 4 GB/s and fp32 8 GFLOPS; 4-bit weights come at 2, bf16 does 5.

    800 bytes take 200 ns, at 4 bits 400; 1,600 operations take 200 ns, in bf16 320.
    """
    profile = replace(ideal_device(), memory_gb_per_s=4, peak_gflops=8)
    given = replace(profile, q4_gb_per_s=2, bfloat16_gflops=5)

    def times(device: DeviceProfile, flops: int, nbytes: int) -> list[int]:
        held = ("float32", "bfloat16", "q8", "q4", None)
        return [work_ns(device, (Operator(flops, nbytes, weights),)) for weights in held]

    assert times(profile, 0, 800) == [200, 200, 200, 200, 200]
    assert times(given, 0, 800) == [200, 200, 200, 400, 200]
    assert times(given, 1600, 0) == [200, 320, 200, 200, 200]
    assert times(given, 1600, 800) == [200, 320, 200, 400, 200]
    in_bfloat16 = Operator(1600, 800, None, "bfloat16")  # attention, which reads no weights
    assert work_ns(given, (in_bfloat16,)) == 320


def test_unpacking_is_arithmetic_and_falls_with_the_cores() -> None:
    """Half of the cores still saturate memory, but unpack half as fast; a quarter does less."""
    profile = replace(ideal_device(), cores=8, memory_gb_per_s=4, q4_gb_per_s=2)
    work = [(Operator(0, 800, weights),) for weights in ("float32", "q4")]
    cut = [replace(profile, used_cores=used) for used in (8, 4, 2)]
    assert [[work_ns(p, w) for w in work] for p in cut] == [[200, 400], [200, 800], [400, 1600]]


def test_each_operator_has_its_overhead() -> None:
    profile = replace(ideal_device(), memory_gb_per_s=2, op_overhead_us=1.5)
    work = (Operator(0, 100), Operator(0, 100), Operator(0, 0))
    assert work_ns(profile, work) == 50 + 50 + 3 * 1500
    products = (Operator(0, 100, "q4"), Operator(0, 100, "q4", num_rows=9))
    assert work_ns(profile, work + products) == 4 * 50 + 5 * 1500
    given = replace(profile, product_overhead_us=2)
    assert work_ns(given, work + products) == 4 * 50 + 3 * 1500 + 2 * 2000
    given = replace(given, half_overhead_us=0.5)
    assert work_ns(given, work + products) == 4 * 50 + 3 * 1500 + 2 * 2000
    halves = tuple(operator._replace(dtype="bfloat16") for operator in work + products)
    assert work_ns(given, halves) == 4 * 50 + 3 * 2000 + 2 * 2500
    attention = (Operator(0, 100, attention="decode"),)
    assert work_ns(given, attention) == 50 + 1500
    assert work_ns(replace(given, attention_overhead_us=9), attention) == 50 + 9000
    prompt = (Operator(0, 100, attention="prefill"),)
    assert work_ns(replace(given, attention_overhead_us=9), prompt) == 50 + 1500


def test_fewer_cores_compute_slower_and_below_half_of_them_read_slower() -> None:
    """Of 8 cores at 8 GFLOPS and 4 GB/s: 4 do 4 and 4, 2 do 2 and 2."""
    profile = replace(ideal_device(), cores=8, memory_gb_per_s=4, peak_gflops=8)
    times = []
    for used in (None, 8, 4, 2):
        cut = replace(profile, used_cores=used)
        computing, reading = (Operator(800, 0),), (Operator(0, 800),)
        times.append((work_ns(cut, computing), work_ns(cut, reading), cut.strength))
    assert times == [
        (100, 200, 4e9),
        (100, 200, 4e9),
        (200, 200, 4e9),
        (400, 400, 2e9),
    ]


def test_an_ideal_device_takes_no_time() -> None:
    assert work_ns(ideal_device(), (Operator(10**15, 10**15, "q4"),)) == 0
    assert ideal_device().message_ns == 0


def test_one_profile_stands_for_all_devices() -> None:
    a, b = ideal_device("a"), ideal_device("b")
    assert profiles_for([a], 3) == [a, a, a]
    assert profiles_for([a, b], 2) == [a, b]
    with pytest.raises(ValueError, match=r"device=\[a,b\] names 2 devices, but .*num_devices=3"):
        profiles_for([a, b], 3)


def test_names_are_grouped_in_order() -> None:
    names = [ideal_device(name) for name in ("a", "a", "b", "a")]
    assert profile_names(names) == "2 x a, b, a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cores": 0}, "device.ideal.cores=0 must be at least 1"),
        ({"disk_queue_depth": 0}, "device.ideal.disk_queue_depth=0 must be at least 1"),
        ({"memory_gb": 0}, "device.ideal.memory_gb=0 must be above 0"),
        ({"memory_gb_per_s": -1}, "device.ideal.memory_gb_per_s=-1 must be above 0"),
        ({"peak_gflops": float("nan")}, "device.ideal.peak_gflops=nan must be above 0"),
        ({"disk_gb_per_s": 0}, "device.ideal.disk_gb_per_s=0 must be above 0"),
        ({"op_overhead_us": -1}, "device.ideal.op_overhead_us=-1 must be at least 0"),
        ({"used_cores": 2}, "device.ideal.used_cores=2 must be 1 to 1, or null for all"),
        ({"disk_latency_us": float("inf")}, "device.ideal.disk_latency_us=inf must be at least 0"),
        ({"disk_gap_us": -1}, "device.ideal.disk_gap_us=-1 must be at least 0"),
        ({"disk_shared_gap_us": -1}, "device.ideal.disk_shared_gap_us=-1 must be at least 0"),
        ({"message_overhead_us": float("nan")}, "device.ideal.message_overhead_us=nan must be"),
        (
            {"q4_gb_per_s": 0},
            "device.ideal.q4_gb_per_s=0 must be above 0, or null for memory_gb_per_s",
        ),
        ({"q8_gb_per_s": float("inf")}, "device.ideal.q8_gb_per_s=inf must be above 0, or null"),
        (
            {"bfloat16_gflops": -3},
            "device.ideal.bfloat16_gflops=-3 must be above 0, or null for peak_gflops",
        ),
        ({"q4_gflops": float("nan")}, "device.ideal.q4_gflops=nan must be above 0, or null"),
    ],
)
def test_bad_profiles_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ideal_device(), **changes)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_device_of_the_group_is_valid_and_called_as_its_file(path: Path) -> None:
    device = instantiate(OmegaConf.load(path))
    assert device.name == path.stem
    if isinstance(device, DeviceProfile):
        assert device.source
        assert work_ns(device, (Operator(2 * 10**9, 10**9),)) > 0
        slowest = [device.read_bps(weights) for weights in ("float32", "q8", "q4")]
        assert slowest == sorted(slowest, reverse=True)  # unpacking costs, and more at 4 bits
