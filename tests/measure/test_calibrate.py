"""This host as a device profile: what is measured, and what is made of the file that keeps it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.calibration import HOST, PLAIN, keep
from tpi_bench.contract.blocks import PAGE
from tpi_bench.contract.model import DTYPES, WEIGHTS
from tpi_bench.contract.rounds import in_round
from tpi_bench.engine import matrix as engine_matrix
from tpi_bench.engine.matrix import Matrix
from tpi_bench.host import cgroups
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure import at_once, calibrate, core_rates
from tpi_bench.measure.calibrate import ThisHost
from tpi_bench.measure.matrices import cut, matrices_of, shape_of, stored_ones
from tpi_bench.measure.paging_rate import paging_rate
from tpi_bench.measure.program_costs import EngineRun, EngineRuns, engine_runs, program_costs
from tpi_bench.measure.waits import wait_costs

RATES = {"q8_gb_per_s": 38.0, "q4_gb_per_s": 30.0, "bfloat16_gflops": 200.0}


def test_the_profile_has_what_was_measured_with_so_many_threads(tmp_path: Path) -> None:
    keep(tmp_path, t1=PLAIN, t2=PLAIN | RATES | {"memory_gb_per_s": 50.0})
    one, two = (ThisHost(threads=threads).load(tmp_path) for threads in (1, 2))
    assert (one.cores, two.cores) == (1, 2)
    assert one.disk_gb_per_s == 2.0
    assert [one.read_bps(held) for held in ("float32", "q8", "q4")] == [40e9] * 3
    assert [two.read_bps(held) for held in ("float32", "q8", "q4")] == [50e9, 38e9, 30e9]
    assert (two.flops_per_s("bfloat16"), two.flops_per_s("q4")) == (200e9, 90e9)
    assert [in_round(two, number).q8_gb_per_s for number in range(3)] == pytest.approx(
        [38, 34.2, 41.8]
    )
    assert in_round(two, 1).rounds == ()
    with pytest.raises(ValueError, match=r"this_host\.threads=3 was not calibrated; .* 1, 2"):
        ThisHost(threads=3).load(tmp_path)


def test_a_profile_has_the_medians_of_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round measures everything once; all of it is fields of a profile."""
    rates = itertools.count(1)
    monkeypatch.setattr(calibrate, "in_helper", lambda fn, threads: PLAIN | RATES)
    monkeypatch.setattr(
        calibrate, "disk_rates", lambda folder: HOST | {"disk_gb_per_s": next(rates)}
    )
    missed = {"disk_residual": 2.0, "token_residual": 1.25, "prompt_residual": 1.0}
    no_runs = EngineRuns(*[EngineRun(None, None)] * 4)  # type: ignore[arg-type]
    held: list[str] = []

    def engine_runs(folder: Path, weights: str) -> EngineRuns:
        held.append(weights)
        return no_runs

    monkeypatch.setattr(calibrate, "engine_runs", engine_runs)
    monkeypatch.setattr(calibrate, "program_costs", lambda runs: {"step_overhead_us": 5.0})
    monkeypatch.setattr(calibrate, "wait_costs", lambda folder: {"cold_overhead_us": 40.0})
    monkeypatch.setattr(calibrate, "shared_disk_rate", lambda *given: {"disk_shared_gb_per_s": 1.5})
    monkeypatch.setattr(calibrate, "residuals", lambda *given: missed)
    monkeypatch.setattr(calibrate, "paging_rate", lambda folder: {"paging_gb_per_s": 1.5})
    monkeypatch.setattr(calibrate, "shared_memory_rate", lambda: {"memory_shared_gb_per_s": 60.0})
    found = calibrate.calibrate(tmp_path, num_rounds=3)
    assert held == ["float32", "bfloat16", "q8"]
    disk = next(row for row in found["host"] if row["name"] == "disk_gb_per_s")
    assert disk == {"name": "disk_gb_per_s", "typical": 2, "min": 1, "max": 3, "rounds": [1, 2, 3]}
    profile = ThisHost(threads=1).load(tmp_path)
    assert profile.disk_gb_per_s == 2
    assert (profile.step_ns, profile.receive_ns) == (5_000, profile.message_ns)
    assert (profile.cold_after_ns(2_000_000), profile.disk_shared_gb_per_s) == (20_000, 1.5)
    assert [in_round(profile, number).disk_gb_per_s for number in range(3)] == [0.5, 1, 1.5]
    assert "disk_gb_per_s" in calibrate.calibration_text(found)
    elsewhere = tmp_path / "laptop.json"
    elsewhere.write_text(json.dumps(found))
    laptop = calibrate.read_profile(elsewhere, "laptop")
    assert (laptop.name, laptop.cores) == ("laptop", len(available_cpus()))
    assert (laptop.disk_gb_per_s, laptop.memory_gb) == (2, found["machine"]["memory_gb"])


def test_rates_of_a_disk_are_its_mean_without_the_extremes() -> None:
    """A byte takes 1 / 2 and 1 / 3 s: together 5 / 6 s for two, so 2.4 bytes a second."""
    assert calibrate.typical("disk_gb_per_s", [9.0, 2.0, 3.0, 0.1]) == pytest.approx(2.4)
    assert calibrate.typical("disk_gb_per_s", [2.0, 3.0]) == pytest.approx(2.4)
    assert calibrate.typical("disk_gap_us", [9.0, 2.0, 3.0, 0.1]) == 2.5
    assert calibrate.typical("memory_gb_per_s", [9.0, 2.0, 3.0]) == 3.0


def test_products_are_measured_in_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"_MEMORY_BYTES": 1 << 19, "_MATRIX_BYTES": 1 << 18, "_SWEPT_BYTES": 1 << 18}
    small |= {"_SMALL_BYTES": 1 << 16, "_CACHES": 2}
    for name, value in small.items():
        monkeypatch.setattr(core_rates, name, value)
    num_threads = torch.get_num_threads()
    found = core_rates.compute_rates(1)
    torch.set_num_threads(num_threads)
    of_precisions = [f"{w}_{unit}" for w in WEIGHTS[1:] for unit in ("gb_per_s", "gflops")]
    of_rows = [f"{w}_{unit}" for w in WEIGHTS for unit in ("rows_gb_per_s", "few_gflops")]
    kinds = ("attention", "decode_attention")
    of_attention = [f"{dtype}_{kind}_gflops" for dtype in DTYPES for kind in kinds]
    of_states = [f"{dtype}_states_gb_per_s" for dtype in DTYPES]
    overheads = [f"{kind}_overhead_us" for kind in ("op", "product", "attention", "half")]
    plain = ["memory_gb_per_s", "peak_gflops", *overheads]
    assert set(found) == {*plain, *of_precisions, *of_rows, *of_attention, *of_states}
    for name in ("product_overhead_us", "half_overhead_us"):  # they may come out as nothing
        assert found.pop(name) >= 0
    assert all(value > 0 for value in found.values())


def test_a_products_overhead_is_what_its_bytes_do_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """8 small and 2 large matrices: 3 s a call, and 1 s for each 64 KiB; but no less than 0."""
    monkeypatch.setattr(core_rates, "_MEMORY_BYTES", 8 << 16)
    monkeypatch.setattr(core_rates, "_SMALL_BYTES", 1 << 16)
    monkeypatch.setattr(core_rates, "_MATRIX_BYTES", 1 << 18)
    for small_s, overhead_s in ((4.0, 3.0), (1.5, 0.0)):
        times = iter([[8 * small_s], [2 * (3.0 + 4.0)]])
        monkeypatch.setattr(core_rates, "_times", lambda fn, times=times: next(times))
        assert core_rates._product_overhead_s() == pytest.approx(overhead_s)


@pytest.mark.parametrize(("taken_s", "computing_s"), [(1.75, 1.0), (0.8, 0.2)])
def test_attention_of_one_position_is_measured_beside_its_cache(
    taken_s: float, computing_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a call 0.25 s are an operator's, 0.5 s its cache's; at least a quarter is computing."""
    monkeypatch.setattr(core_rates, "_CACHES", 2)
    monkeypatch.setattr(core_rates, "_times", lambda fn: [9.0, 2 * taken_s, 0.1])
    nbytes = 2 * 4 * 512 * 64 * 2
    found = core_rates._decode_attention_flops_per_s("bfloat16", 0.25, nbytes / 0.5)
    assert found == pytest.approx(4 * 16 * 512 * 64 / computing_s)


def test_no_reading_and_no_arithmetic_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two matrices, 0.1 s a call. A vector takes both 1.2 s: reading 0.5 each, and 8 at once 2.6 s:
    each of 7 further ones 0.1. Of 16 and 128 rows each takes 0.01 s of arithmetic, the bytes 2 s
    before it; at least half of the few is theirs.
    """
    monkeypatch.setattr(core_rates, "_MEMORY_BYTES", 2 << 18)
    monkeypatch.setattr(core_rates, "_MATRIX_BYTES", 1 << 18)
    flops, nbytes = 2 * (1 << 16), 1 << 18
    for few_s, many_s, row_s, before_s in (
        *((2.16, 3.28, 0.01, 2.0), (1.0, 12.2, 0.1, 0.5)),
        (2.16, 1.28, 0.01, 2.0),  # disturbed: all that many rows take
    ):
        times = iter([[1.2], [2.6], [2 * (few_s + 0.1)], [2 * (many_s + 0.1)]])
        monkeypatch.setattr(core_rates, "_times", lambda fn, times=times: next(times))
        found = core_rates._products("float32", 0.1)
        assert found["memory_gb_per_s"] == pytest.approx(nbytes / 0.5 / 1e9)
        assert found["peak_gflops"] == pytest.approx(flops / row_s / 1e9, rel=0.02)
        assert found["float32_few_gflops"] == pytest.approx(flops / 0.1 / 1e9)
        assert found["float32_rows_gb_per_s"] == pytest.approx(nbytes / before_s / 1e9, rel=0.02)


@pytest.mark.parametrize(
    ("taken_s", "computing_s"), [(0.25 + 0.5 + 1.0, 1.0), (0.25 + 0.5 + 0.5, 1.25 / 2)]
)
def test_attention_is_measured_beside_its_bytes(
    taken_s: float, computing_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a call 0.25 s are an operator's, 0.5 s its four tensors'; at least half is computing."""
    monkeypatch.setattr(core_rates, "_in_a_prompt_s", lambda fn: taken_s)
    nbytes = 4 * 16 * 128 * 64 * 4
    found = core_rates._attention_flops_per_s("float32", 0.25, nbytes / 0.5)
    assert found == pytest.approx(4 * 16 * 128 * 128 * 64 / computing_s)


@pytest.mark.parametrize(("taken_s", "moving_s"), [(0.5 + 1.0, 1.0), (0.5 + 0.25, 0.75 / 2)])
def test_states_are_measured_beside_what_their_operators_cost(
    taken_s: float, moving_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate's two operators cost 0.25 s each; at least half of it is moving its five parts."""
    monkeypatch.setattr(core_rates, "_in_a_prompt_s", lambda fn: taken_s)
    found = core_rates._states_bytes_per_s("bfloat16", 0.25)
    assert found == pytest.approx(5 * 128 * 1536 * 2 / moving_s)


def test_what_stands_in_a_prompt_is_timed_behind_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of nine calls, each behind a product of its own; the first does not count."""
    monkeypatch.setattr(core_rates, "_MATRIX_BYTES", 1 << 16)
    done: list[str] = []
    multiply = Matrix.__call__

    def product(self: Matrix, rows: torch.Tensor) -> torch.Tensor:
        done.append("product")
        return multiply(self, rows)

    times = iter([90.0, 1, 2, 3, 4, 50, 6, 7, 8, 9])

    def seconds(fn: Callable[[], object]) -> float:
        fn()
        return next(times)

    monkeypatch.setattr(Matrix, "__call__", product)
    monkeypatch.setattr(core_rates, "seconds", seconds)
    assert core_rates._in_a_prompt_s(lambda: done.append("timed")) == 6
    assert done == ["product", "timed"] * 10


@pytest.mark.parametrize("held", WEIGHTS)
def test_what_is_multiplied_has_the_bytes_that_were_asked_for(held: str) -> None:
    tensors = stored_ones(held, shape_of(held, 1 << 22))
    nbytes = sum(tensor.nbytes for tensor in tensors)
    assert 1 << 22 <= nbytes < 1.2 * (1 << 22)  # scales come on top


@pytest.mark.skipif(len(available_cpus()) < 2, reason="one core computes for itself")
def test_a_memory_is_read_by_two_cores_at_once() -> None:
    """Of all that compute, of the time in which all of them do."""
    found = core_rates.shared_memory_rate()
    assert 0.1 < found["memory_shared_gb_per_s"] < 2000


def test_cores_that_share_a_memory_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process computes on a core of its own: twice 6 products of 4 MB in half a second."""
    cpus: list[int] = []

    def compute(fn: Any, cpu: int) -> list[int]:
        cpus.append(cpu)
        last = 10**9 // 2
        return [0, *range(cpu * 1000, last, 10**8), last]

    monkeypatch.setattr(core_rates, "available_cpus", lambda: [4, 6])
    monkeypatch.setattr(at_once, "in_helper", compute)
    found = core_rates.shared_memory_rate()
    assert sorted(cpus) == [4, 6]
    assert found["memory_shared_gb_per_s"] == pytest.approx(12 * (4 << 20) / (10**9 / 2))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be chosen here")
def test_it_stays_on_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(core_rates, "_COMPUTING_S", 0.01)
    try:
        ends = core_rates._product_ends_ns(max(before))
        assert os.sched_getaffinity(0) == {max(before)}
    finally:
        os.sched_setaffinity(0, before)
    assert ends == sorted(ends)


def test_matrices_are_there_before_products_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Matrix] = []

    class Counted(Matrix):
        def __init__(self, *tensors: torch.Tensor) -> None:
            super().__init__(*tensors)
            made.append(self)

    monkeypatch.setattr(core_rates, "_MEMORY_BYTES", 3 * core_rates._MATRIX_BYTES)
    monkeypatch.setattr(engine_matrix, "Matrix", Counted)
    products = core_rates.endless_products()
    assert [matrix.nbytes for matrix in made] == [core_rates._MATRIX_BYTES] * 3
    with torch.inference_mode():
        assert {tuple(next(products).shape) for _ in range(7)} == {(1, 1024)}
    assert len(made) == 3


@pytest.mark.parametrize(("held", "num_rows"), [("float32", 2), ("bfloat16", 4), ("q4", 16)])
def test_of_a_large_matrix_the_first_rows_are_taken(held: str, num_rows: int) -> None:
    assert cut(held, (100, 64), 512) == (num_rows, 64)
    assert cut(held, (2, 64), 512) == (2, 64)


@pytest.mark.parametrize("held", WEIGHTS)
def test_matrices_lie_in_one_area_each_at_a_page(held: str) -> None:
    """In turns of two, of which as many fit as whole turns do."""
    shapes = [(3, 64), (32, 1024)]
    turn = matrices_of(held, shapes, 1)
    assert [matrix.shape for matrix in turn] == shapes
    tensors = [t for matrix in turn for t in (matrix.values, matrix.scales) if t is not None]
    begins = [tensor.data_ptr() for tensor in tensors]
    assert all(begin % PAGE == 0 for begin in begins)
    ends = [begin + -(-t.nbytes // PAGE) * PAGE for begin, t in zip(begins, tensors, strict=True)]
    assert begins[1:] == ends[:-1]
    assert all(bool((tensor == 1).all()) for tensor in tensors)
    assert len(matrices_of(held, shapes, 3 * (ends[-1] - begins[0]))) == 6


def test_one_core_shares_its_memory_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_rates, "available_cpus", lambda: [0])
    assert core_rates.shared_memory_rate() == {}


def test_files_are_paged_in_where_memory_is_short(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No faster than memory, in a second round neither; unknown where pages count in no cap."""
    found = [paging_rate(cache_dir) for _ in range(2)]
    assert found[0].keys() == found[1].keys()
    if found[0]:
        assert all(0.02 < each["paging_gb_per_s"] < 20 for each in found)
    monkeypatch.setattr(cgroups, "make_groups", lambda *args, **kwargs: [])
    assert paging_rate(cache_dir) == {}


def test_what_a_rank_program_takes_besides_computing(cache_dir: Path) -> None:
    """Of the engine on two real devices; each is between nothing and a millisecond, and asking for
    a read, which waits where other tests keep the disk busy, and 20.
    """
    runs = engine_runs(cache_dir)
    found = program_costs(runs) | wait_costs(cache_dir)
    assert list(found) == [
        "message_overhead_us",
        "receive_overhead_us",
        "message_gb_per_s",
        "receive_gb_per_s",
        "step_overhead_us",
        "swept_overhead_us",
        "swept_read_overhead_us",
        "wake_overhead_us",
        "read_overhead_us",
        "asking_gb_per_s",
        "streamed_overhead_us",
        "streamed_gb_per_s",
        "cold_overhead_us",
    ]
    for name in (name for name in found if name.endswith("_us")):
        assert 0 <= found[name] < (20_000 if "read_" in name else 1000), (name, found[name])
    assert all(0.1 < found[name] <= 1000 for name in found if name.endswith("gb_per_s"))
    assert found["message_overhead_us"] > 0
    assert found["step_overhead_us"] > 0
    assert found["read_overhead_us"] > 0
