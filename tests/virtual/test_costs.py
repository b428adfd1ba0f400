"""What computations cost: counted operators by hand, one trace a key, times from the file."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tpi_bench.contract.device import DeviceProfile, ideal_device
from tpi_bench.contract.roofline import Operator, Work
from tpi_bench.contract.runtime import Key
from tpi_bench.engine.matrix import Matrix
from tpi_bench.virtual import costs as costs_module
from tpi_bench.virtual.costs import MeasuredCosts, ModelledCosts
from tpi_bench.virtual.operators import count_work

DEVICE = replace(ideal_device("a"), memory_gb_per_s=2, peak_gflops=4, op_overhead_us=1.5)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def work_of(fn: Callable[[], object]) -> Work:
    with torch.inference_mode():  # as the scheduler does
        return count_work(fn)[1]


def counts(fn: Callable[[], object]) -> tuple[tuple[int, int], ...]:
    """Floating-point operations and bytes."""
    return tuple((operator.flops, operator.nbytes) for operator in work_of(fn))


def test_a_product_counts_both_inputs_the_output_and_two_operations_a_term() -> None:
    """(3, 5) times (5, 7): 15 + 35 + 21 values of 4 bytes, 2 x 3 x 5 x 7 operations."""
    a, b = meta(3, 5), meta(5, 7)
    assert counts(lambda: a @ b) == ((210, 284),)
    linear, weight = meta(1, 3, 5), meta(7, 5)
    assert counts(lambda: F.linear(linear, weight)) == ((210, 284),)


def test_batched_and_half_precision_products() -> None:
    """4 times (2, 3) x (3, 5): 4 x (6 + 15 + 10) values of 2 bytes, 4 x 2 x 2 x 3 x 5."""
    a, b = meta(4, 2, 3, dtype=torch.float16), meta(4, 3, 5, dtype=torch.float16)
    assert counts(lambda: torch.bmm(a, b)) == ((240, 248),)


def test_views_are_free() -> None:
    x = meta(6, 4)

    def look() -> torch.Tensor:
        parts = x.view(2, 3, 4).transpose(0, 1).unsqueeze(0).expand(5, 3, 2, 4).chunk(2, dim=-1)
        left, _ = parts[0].split((1, 2), dim=1)
        return left[1:, ..., :1].permute(1, 0, 2, 3).detach().select(0, 0).squeeze()

    assert counts(look) == ()
    assert counts(lambda: x.reshape(24).flatten()) == ()


def test_work_in_place_is_no_view() -> None:
    """10 values are read, 10 added to them, 10 written."""
    x, y = meta(10), meta(10)
    assert counts(lambda: x.add_(y)) == ((0, 120),)
    assert counts(lambda: x + y) == ((0, 120),)


def test_a_gather_reads_what_it_returns() -> None:
    """5 rows of 8 values are read and written, whatever the table's length."""
    table, ids = meta(1000, 8), torch.zeros(5, dtype=torch.int64, device="meta")
    for gather in (lambda: table[ids], lambda: F.embedding(ids, table)):
        assert counts(gather) == ((0, 2 * 5 * 8 * 4),)


def stored(held: str, device: str) -> Matrix:
    """A matrix (7, 64), as block files hold it."""
    scales = torch.full((7, 2), 0.5, dtype=torch.float16, device=device)
    if held == "q8":
        return Matrix(torch.full((7, 64), -3, dtype=torch.int8, device=device), scales)
    if held == "q4":
        return Matrix(torch.full((7, 32), 0x2B, dtype=torch.uint8, device=device), scales)
    return Matrix(torch.full((7, 64), 1.5, dtype=getattr(torch, held), device=device))


@pytest.mark.parametrize(
    ("held", "dtype", "weight_bytes"),
    [
        ("float32", torch.float32, 7 * 64 * 4),
        ("bfloat16", torch.bfloat16, 7 * 64 * 2),
        ("float16", torch.float32, 7 * 64 * 2),
        ("q8", torch.float32, 7 * 64 + 7 * 2 * 2),
        ("q4", torch.float32, 7 * 32 + 7 * 2 * 2),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_product_with_weights_is_one_operator_of_their_precision(
    held: str, dtype: torch.dtype, weight_bytes: int, num_rows: int
) -> None:
    """x (T, 64) times (7, 64), with whatever kernel: what it does, and the bytes of all tensors."""
    state_bytes = num_rows * (64 + 7) * dtype.itemsize
    expected = Operator(
        flops=2 * num_rows * 64 * 7,
        nbytes=weight_bytes + state_bytes,
        weights=held,
        dtype=str(dtype).removeprefix("torch."),
        num_rows=num_rows,
        state_bytes=state_bytes,
    )
    x = meta(num_rows, 64, dtype=dtype)
    planned = stored(held, "meta")
    assert work_of(lambda: planned(x)) == (expected,)
    real, ones = stored(held, "cpu"), torch.ones(num_rows, 64, dtype=dtype)
    with torch.inference_mode():
        result, work = count_work(lambda: real(ones))
        assert torch.equal(result, real(ones))
    assert work == (expected,)


def test_other_operators_say_what_they_compute_in() -> None:
    """Attention reads no weights, but has the arithmetic of its type, of later keys too."""
    queries = meta(1, 2, 5, 8, dtype=torch.bfloat16)
    attention = Operator(
        2 * 2 * (2 * 5 * 5 * 8), 4 * 2 * 5 * 8 * 2, None, "bfloat16", attention="prefill"
    )
    for is_causal in (False, True):
        attend = functools.partial(F.scaled_dot_product_attention, is_causal=is_causal)
        assert work_of(lambda attend=attend: attend(queries, queries, queries)) == (attention,)


def test_modelled_charges_the_rate_of_the_precision() -> None:
    """228 + 284 bytes at 4 bits, at 1 GB/s where memory gives 2; 7 overhead."""
    device = replace(DEVICE, q4_gb_per_s=1, op_overhead_us=0.007)
    matrix, x = stored("q4", "meta"), meta(1, 64)
    nbytes = 7 * 32 + 7 * 2 * 2 + (64 + 7) * 4
    for profile, ns in ((device, nbytes), (replace(device, q4_gb_per_s=None), nbytes // 2)):
        with torch.inference_mode():
            assert ModelledCosts().run(("product",), lambda: matrix(x), profile)[1] == ns + 7


def test_counting_does_not_change_the_result() -> None:
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(3, 8, generator=generator), torch.randn(5, 8, generator=generator)
    with torch.inference_mode():
        result, work = count_work(lambda: F.linear(x, w).softmax(-1))
        assert torch.equal(result, F.linear(x, w).softmax(-1))
    assert len(work) == 2


def test_modelled_charges_the_roofline() -> None:
    """At 2 GB/s the 284 bytes take 142 ns, at 4 GFLOPS the 210 operations 52.5; 1,500 overhead."""
    a, b = meta(3, 5), meta(5, 7)
    out, ns = ModelledCosts().run(("mm",), lambda: a @ b, DEVICE)
    assert out.shape == (3, 7)
    assert ns == 142 + 1500
    slow = replace(DEVICE, peak_gflops=1)  # 210 ns
    assert ModelledCosts().run(("mm",), lambda: a @ b, slow)[1] == 210 + 1500
    two = ModelledCosts().run(("mm",), lambda: (a @ b) * 2, DEVICE)[1]  # 21 read, 21 written
    assert two == 142 + 84 + 2 * 1500


def test_modelled_traces_a_key_once_for_all_devices() -> None:
    calls: list[int] = []
    inputs = {size: meta(size, size) for size in (10, 20)}

    def product(size: int) -> torch.Tensor:
        calls.append(size)
        return inputs[size] @ inputs[size]

    costs = ModelledCosts()
    fast = replace(DEVICE, name="b", memory_gb_per_s=20, peak_gflops=40, op_overhead_us=0)
    times = [
        costs.run(("mm", size), functools.partial(product, size), device)[1]
        for size in inputs
        for device in (DEVICE, DEVICE, fast, DEVICE)
    ]
    assert calls == [10, 20]
    assert costs.num_traced == 2
    # 1,200 and 4,800 bytes at 2 GB/s; 2,000 and 16,000 operations at 4 GFLOPS; or ten times both.
    assert times == [2100, 2100, 60, 2100, 5500, 5500, 400, 5500]


class FakeClock:
    """Each computation takes as long as the test says next; its operators stay real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        self.num_calls = 0
        monkeypatch.setattr(costs_module.time, "perf_counter_ns", lambda: self.now_ns)

    def taking(self, ns: int) -> Callable[[], torch.Tensor]:
        def fn() -> torch.Tensor:
            self.now_ns += ns
            self.num_calls += 1
            return torch.ones(10) * 2

        return fn


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)


KEY: Key = ("twice", 10, torch.float32)


def learned(path: Path, clock: FakeClock, host: DeviceProfile = DEVICE) -> MeasuredCosts:
    """100, 700 and 300 ns are typically 200: the slowest tenth, rounded up, is left out. The first
    time, 5,000, is counted and no sample.
    """
    costs = MeasuredCosts(path, host, 1)
    charged = [costs.run(KEY, clock.taking(ns), host)[1] for ns in (5000, 100, 700, 300)]
    assert charged == [5000, 100, 700, 300]
    return costs


def test_measured_charges_typical_times_once_they_are_saved(
    tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "costs.json"
    costs = learned(path, clock)
    assert not costs.is_complete
    assert not path.exists()
    costs.save()
    assert costs.is_complete
    for later in (costs, MeasuredCosts(path, DEVICE, 1)):
        before = clock.num_calls
        result, ns = later.run(KEY, clock.taking(199), DEVICE)
        assert ns == 200
        assert clock.num_calls == before + 1  # it really runs, every time
        assert torch.equal(result, torch.full((10,), 2.0))
        assert later.is_complete


@pytest.mark.parametrize(("waited_ms", "more_us"), [(0, 0), (1, 10), (4, 40), (10, 100), (50, 100)])
def test_a_modelled_device_is_the_colder_the_longer_it_waited(waited_ms: int, more_us: int) -> None:
    """40 us after 4 ms; after 10 it is as cold as it gets."""
    x = torch.empty(500, device="meta")
    cold = replace(DEVICE, cold_overhead_us=40)
    costs = ModelledCosts()
    waits_ms = (waited_ms, 0, waited_ms)  # as it is first found, and as it is known
    first_ns, warm_ns, ns = (
        costs.run(("add",), lambda: x + x, cold, wait_ms * 1_000_000)[1] for wait_ms in waits_ms
    )
    assert first_ns == ns == warm_ns + more_us * 1000


def test_a_core_that_idled_is_charged_for_it(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(costs_module.time, "sleep", slept.append)
    costs = learned(tmp_path / "costs.json", clock)
    for ns in (5000, 900):
        costs.run(KEY, clock.taking(ns), DEVICE, idle_ns=3_000_000)
    costs.save()
    assert slept == [0.002]  # before others not even for no time, which leaves a core colder
    charged = [costs.run(KEY, clock.taking(1), DEVICE, idle_ns=n)[1] for n in (0, 2_000_000)]
    assert charged == [200, 900]


def test_the_charge_is_the_files(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "costs.json"
    learned(path, clock).save()
    entries = json.loads(path.read_text())
    for entry in entries.values():
        entry["timings_ns"] = [1234, 1234]
    path.write_text(json.dumps(entries))
    assert MeasuredCosts(path, DEVICE, 1).run(KEY, clock.taking(1), DEVICE)[1] == 1234


def test_what_was_timed_long_ago_is_timed_again(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared host is not as fast as it was; what has been timed since is kept."""
    path, start_s = tmp_path / "costs.json", time.time()
    learned(path, clock).save()
    monkeypatch.setattr(costs_module.time, "time", lambda: start_s + 590)
    assert MeasuredCosts(path, DEVICE, 1).run(KEY, clock.taking(1), DEVICE)[1] == 200
    monkeypatch.setattr(costs_module.time, "time", lambda: start_s + 610)
    later = MeasuredCosts(path, DEVICE, 1)
    assert [later.run(KEY, clock.taking(ns), DEVICE)[1] for ns in (70, 80)] == [70, 80]
    later.save()
    assert MeasuredCosts(path, DEVICE, 1).run(KEY, clock.taking(1), DEVICE)[1] == 80


@pytest.mark.parametrize(
    ("key", "threads", "kernel"),
    [
        (("twice", 11, torch.float32), 1, "torch"),
        (("twice", 10, torch.float16), 1, "torch"),
        (KEY, 2, "torch"),
        (KEY, 1, "numba q4"),
    ],
)
def test_other_keys_threads_and_kernels_are_measured_anew(
    tmp_path: Path, clock: FakeClock, key: Key, threads: int, kernel: str
) -> None:
    path = tmp_path / "costs.json"
    learned(path, clock).save()
    costs = MeasuredCosts(path, DEVICE, threads, kernel=kernel)
    assert costs.run(key, clock.taking(77), DEVICE)[1] == 77
    assert not costs.is_complete


def test_a_computation_that_ran_once_is_timed_in_the_next_run(
    tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "costs.json"
    costs = MeasuredCosts(path, DEVICE, 1)
    costs.run(KEY, clock.taking(5000), DEVICE)
    costs.save()
    assert json.loads(path.read_text()) == {}
    assert costs.run(KEY, clock.taking(40), DEVICE)[1] == 40
    assert not costs.is_complete
    costs.save()
    assert costs.run(KEY, clock.taking(41), DEVICE)[1] == 40
    assert costs.is_complete


def test_two_timings_that_disagree_are_decided_by_a_third(tmp_path: Path, clock: FakeClock) -> None:
    """Somebody took the core while it was timed at first: that is charged to no finished run."""
    path = tmp_path / "costs.json"
    learned(path, clock).save()
    charged, complete = [], []
    for took in (80, 90, 5000, 5000):
        costs = MeasuredCosts(path, DEVICE, 1)
        charged.append(costs.run(KEY, clock.taking(took), DEVICE)[1])
        complete.append(costs.is_complete)
        costs.save()
    assert charged == [200, 200, 90, 90]
    assert complete == [False, False, True, True]


def test_what_hardly_counts_is_not_doubted(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "costs.json"
    small: Key = ("small",)
    for key, times in ((KEY, (5000, 1000)), (small, (5000, 3))):
        costs = MeasuredCosts(path, DEVICE, 1)
        for ns in times:
            costs.run(key, clock.taking(ns), DEVICE)
        costs.save()
    costs = MeasuredCosts(path, DEVICE, 1)
    charged = [costs.run(KEY, clock.taking(1010), DEVICE)[1]]
    charged.append(costs.run(small, clock.taking(9), DEVICE)[1])
    assert (charged, costs.is_complete) == ([1000, 3], True)


def test_measured_adds_to_what_the_file_knows(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "costs.json"
    learned(path, clock).save()
    other: Key = ("other",)
    costs = MeasuredCosts(path, DEVICE, 1)
    for ns in (1, 60):
        costs.run(other, clock.taking(ns), DEVICE)
    costs.save()
    again = MeasuredCosts(path, DEVICE, 1)
    assert [again.run(key, clock.taking(7), DEVICE)[1] for key in (KEY, other)] == [200, 60]


def test_another_device_takes_longer_by_the_ratio_of_rooflines(
    tmp_path: Path, clock: FakeClock
) -> None:
    """`ones` writes 40 bytes, the product reads and writes 80: 120 bytes, no overhead.

    60 ns at the host's 2 GB/s; 240 ns at 0.5 GB/s, four times the typical time.
    """
    host = replace(DEVICE, op_overhead_us=0)
    other = replace(host, name="b", memory_gb_per_s=0.5)
    path = tmp_path / "costs.json"
    costs = learned(path, clock, host)
    assert costs.run(KEY, clock.taking(50), other)[1] == 200  # before it is saved, too
    costs.save()  # the mean of 50, 100 and 300; 700 is left out
    again = MeasuredCosts(path, host, 1)
    assert again.run(KEY, clock.taking(1), host)[1] == 150
    assert again.run(KEY, clock.taking(1), other)[1] == 600


def test_real_computations_are_timed(tmp_path: Path) -> None:
    costs: Any = MeasuredCosts(tmp_path / "costs.json", DEVICE, 1)
    for _ in range(3):
        result, ns = costs.run(("mm",), lambda: torch.ones(64, 64) @ torch.ones(64, 64), DEVICE)
        assert ns > 0
        assert float(result[0, 0]) == 64
    costs.save()
    charged = {costs.run(("mm",), lambda: None, DEVICE)[1] for _ in range(3)}
    assert len(charged) == 1
