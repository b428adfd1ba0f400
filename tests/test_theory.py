"""The paper's formulas, with its own numbers."""

from __future__ import annotations

import pytest

from tpi_bench import theory


@pytest.mark.parametrize(
    ("collective", "hops"), [("star", 8), ("tree", 16), ("ring", 56), ("direct", 4)]
)
def test_allreduce_latency_on_the_papers_topology(collective: str, hops: int) -> None:
    assert 4 * theory.allreduce_steps(collective, 8) == hops


@pytest.mark.parametrize("collective", ["star", "tree", "ring", "direct"])
def test_one_device_has_nothing_to_add(collective: str) -> None:
    assert theory.tensor_parallel_steps(collective, 1, 30) == 0


def test_steps_of_a_token() -> None:
    assert theory.tensor_parallel_steps("star", 4, 30) == 60 * 2
    assert theory.tensor_parallel_steps("tree", 4, 30) == 60 * 4 - 1
    assert theory.tensor_parallel_steps("ring", 4, 30) == 60 * 6
    assert theory.tensor_parallel_steps("direct", 4, 30) == 60
    assert theory.pipeline_steps(4) == 4
    assert theory.pipeline_steps(1) == 0


def test_limit_takes_the_disk_behind_the_rest() -> None:
    def limit(memory_s: float, disk_s: float) -> float:
        return theory.token_limit_s(theory.TokenTimes(memory_s, 1.0, disk_s), network_s=2.0)

    assert limit(2.0, 2.5) == 3.0
    assert limit(2.0, 5.0) == 5.0
    assert limit(9.0, 5.0) == 9.0


SIZES = [theory.TokenBytes(layers=100, head=50, streamed=30), theory.TokenBytes(60, 0, 60)]


def test_devices_of_one_host_share_its_memory_and_disk() -> None:
    tensor = theory.shared_rates(SIZES, 10.0, 5.0, is_tensor=True, cache_bytes=0)
    assert tensor == theory.TokenTimes(memory_s=21.0, critical_memory_s=15.0, disk_s=18.0)
    layers = theory.shared_rates(SIZES, 10.0, 5.0, is_tensor=False, cache_bytes=0)
    assert layers.critical_memory_s == 21.0
    cached = theory.shared_rates(SIZES, 10.0, 5.0, is_tensor=True, cache_bytes=1000)
    assert cached.critical_memory_s == 0.0


def test_devices_of_their_own_wait_for_the_slowest() -> None:
    tensor = theory.own_rates(SIZES, [10.0, 2.0], [3.0, 4.0], is_tensor=True)
    assert tensor == theory.TokenTimes(memory_s=35.0, critical_memory_s=35.0, disk_s=15.0)
    assert theory.own_rates(SIZES, [10.0, 2.0], [3.0, 4.0], is_tensor=False).memory_s == 45.0


# 4 laptops, Llama 2-7B, p = 1/4, window 4: the paper's measured times in ms.
PAPER = {"t_attn": 11, "t_ffn": 17, "t_ar": 14, "tau_attn": 18, "tau_ffn": 30}


def test_the_papers_case_is_loosely_but_not_tightly_steady() -> None:
    assert theory.is_loosely_steady(**PAPER, num_layers=32)
    assert not theory.is_tightly_steady(**PAPER)
    assert theory.is_tightly_steady(**PAPER | {"t_ar": 19})
    assert not theory.is_loosely_steady(**PAPER | {"t_ar": 1}, num_layers=32)


def test_retention_helps_a_disk_that_is_a_little_slow() -> None:
    slow = PAPER | {"tau_ffn": 45}
    assert not theory.is_steady_with_retention(**slow, num_layers=32, period=1000)
    assert theory.is_steady_with_retention(**slow, num_layers=32, period=2)


def test_peak_memory_of_llama2_70b() -> None:
    shape = {"h": 8192, "v": 32000, "a": 64, "b": 8, "s": 28672, "p": 1 / 8}
    master = theory.window_peak_parameters(**shape, window=2, is_master=True)
    assert master == 2 * 8192 * 32000 + 8192
    worker = theory.window_peak_parameters(**shape, window=2, is_master=False)
    attention = 2 * (64 + 8) * 8192**2 / 8 / 64 + 8192
    assert worker == attention + 3 * 8192 * 28672 / 8 + 8192


@pytest.mark.parametrize(
    ("collective", "latencies", "transfers"),
    [("star", 2, 14), ("tree", 4, 2 * (3 - 1 + 3)), ("ring", 14, 14 / 8), ("direct", 1, 7)],
)
def test_an_allreduce_of_8_devices(collective: str, latencies: int, transfers: float) -> None:
    """32 KB over 300 Mbit/s take 0.87381 ms; 7 workers are groups of 2, 2 and 3 under 3 heads."""
    transfer_s = 32768 * 8 / 300e6

    def time_s(one_way_s: float, bandwidth_bps: float) -> float:
        return theory.allreduce_s(
            collective, 8, one_way_s=one_way_s, nbytes=32768, bandwidth_bps=bandwidth_bps
        )

    assert time_s(0.004, 0) == pytest.approx(latencies * 0.004)
    assert time_s(0.004, 300e6) == pytest.approx(latencies * 0.004 + transfers * transfer_s)


def test_an_allreduce_of_one_device_takes_no_time() -> None:
    assert theory.allreduce_s("ring", 1, one_way_s=1, nbytes=1, bandwidth_bps=1) == 0


def test_a_tree_of_two_is_a_star() -> None:
    times = [
        theory.allreduce_s(name, 2, one_way_s=0.001, nbytes=1000, bandwidth_bps=1e6)
        for name in ("tree", "star")
    ]
    assert times == pytest.approx([0.018, 0.018])
