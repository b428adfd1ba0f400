"""What runs of the engine took over virtual time, and what a round of a calibration makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.calibration import HOST, PLAIN
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.request import Generation
from tpi_bench.contract.rounds import RESIDUALS, in_round
from tpi_bench.measure import residuals
from tpi_bench.measure.metrics import times_s
from tpi_bench.measure.program_costs import EngineRuns, engine_runs

FOUND = DeviceProfile(name="this_host", cores=1, memory_gb=8, disk_queue_depth=16, **HOST, **PLAIN)


class Run:
    """A run that took so many ms to its first token, and from there to the next."""

    job = None
    token_bytes = 100_000_000
    probed_gb_per_s = 1.5

    def __init__(self, ttft_ms: float, token_ms: float) -> None:
        ends_ns = [round(1e6 * ttft_ms), round(1e6 * (ttft_ms + token_ms))]
        self.generation = Generation(token_ids=[0, 0], request_ns=0, token_ns=ends_ns, account=[])


def predict(monkeypatch: pytest.MonkeyPatch, ttft_ms: float, token_ms: float) -> None:
    generation = Run(ttft_ms, token_ms).generation
    monkeypatch.setattr(residuals, "_predicted", lambda *given: generation)


def test_residuals_are_what_runs_took_over_virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    predict(monkeypatch, 100, 10)
    monkeypatch.setattr(residuals, "_at_its_products", lambda job, found: found)
    runs = EngineRuns(Run(1, 1), Run(1, 1), held_in=Run(120, 9), alone_in=Run(1, 15))  # type: ignore[arg-type]
    found = residuals.residuals(runs, FOUND, Path())
    expected = {"prompt_residual": 1.2, "token_residual": 0.9, "disk_residual": 1.5}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("taken_ms", "of_one"),
    [
        (75, 1.0),  # as expected
        (100, 2 / 3),  # 25 ms more, for bytes that take 50
        (60, 50 / 35),
        (400, 0.25),  # no less than a quarter, whatever ran beside
        (1, 4.0),
    ],
)
@pytest.mark.parametrize("probe_gb_per_s", [None, 0.75, 1.5])
def test_what_windows_share_of_a_disk_makes_a_run_come_out(
    probe_gb_per_s: float | None,
    taken_ms: float,
    of_one: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was probed at 1.5 GB/s beside the run: so 2 GB/s are it then, where the round's probe was
    the same, and twice the round's 1 GB/s, where that was half. A token's bytes take it 50 ms.
    """
    predict(monkeypatch, 1, 75)
    gb_per_s = 1.0 if probe_gb_per_s == 0.75 else 2.0
    found = replace(FOUND, disk_probe_gb_per_s=probe_gb_per_s, disk_gb_per_s=gb_per_s)
    shared = residuals.shared_disk_rate(Run(1, taken_ms), found, Path())  # type: ignore[arg-type]
    assert shared == {"disk_shared_gb_per_s": pytest.approx(gb_per_s * of_one)}


def test_a_run_has_the_disk_that_was_probed_beside_it() -> None:
    run = Run(1, 1)
    plain = replace(FOUND, disk_computing_gb_per_s=1.0)
    assert residuals._at_its_disk(run, plain) == plain  # type: ignore[arg-type]
    probed = replace(plain, disk_probe_gb_per_s=0.5)
    found = residuals._at_its_disk(run, probed)  # type: ignore[arg-type]
    assert found == replace(probed, disk_gb_per_s=6.0, disk_computing_gb_per_s=3.0)


def test_a_round_is_moved_by_its_residuals() -> None:
    """Rates and times of what they belong to, and not what a run has had its say in."""
    found = {
        "prompt_residual": 2.0,
        "token_residual": 4.0,
        "disk_residual": 5.0,
        "peak_gflops": 80.0,
        "float32_few_gflops": 80.0,
        "float32_rows_gb_per_s": 80.0,
        "memory_gb_per_s": 80.0,
        "step_overhead_us": 80.0,
        "swept_overhead_us": 80.0,
        "disk_gb_per_s": 80.0,
        "disk_gap_us": 80.0,
        "read_overhead_us": 80.0,
        "disk_shared_gb_per_s": 80.0,
    }
    profile = in_round(replace(FOUND, rounds=(tuple(found.items()),)), 0)
    assert {name: getattr(profile, name) for name in list(found)[3:]} == {
        "peak_gflops": 40.0,
        "float32_few_gflops": 20.0,
        "float32_rows_gb_per_s": 40.0,
        "memory_gb_per_s": 20.0,
        "step_overhead_us": 320.0,
        "swept_overhead_us": 160.0,
        "disk_gb_per_s": 16.0,
        "disk_gap_us": 400.0,
        "read_overhead_us": 400.0,
        "disk_shared_gb_per_s": 80.0,
    }


def test_of_runs_of_this_host(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On devices four times as fast in all they take a quarter in virtual time; two windows have
    one disk.
    """
    runs = engine_runs(cache_dir)
    assert [run.job.num_devices for run in runs] == [2, 2, 2, 1]
    assert runs.held is runs.held_in
    assert runs.held.token_bytes == 0
    assert runs.streamed.token_bytes == pytest.approx(runs.alone_in.token_bytes, rel=0.05)
    monkeypatch.setattr(residuals, "_at_its_products", lambda job, found: found)
    times = ("op_overhead_us", "disk_latency_us", "message_overhead_us")
    given = {name: getattr(FOUND, name) for name in [*HOST, *PLAIN]}
    faster = {name: v / 4 if name in times else 4 * v for name, v in given.items()}
    slow = residuals.residuals(runs, FOUND, cache_dir)
    fast = residuals.residuals(runs, replace(FOUND, **faster), cache_dir)
    assert all(fast[name] == pytest.approx(4 * slow[name], rel=0.01) for name in RESIDUALS)
    own = residuals._predicted(runs.streamed, FOUND, cache_dir)
    assert times_s(own)[1] > 0.98 * runs.streamed.token_bytes / FOUND.disk_bps


def test_what_virtual_time_misses_is_of_the_precision_of_the_round(cache_dir: Path) -> None:
    """With the products of its own matrices; all else is of runs in fp32."""
    runs = engine_runs(cache_dir, "q8")
    assert [run.job.weights for run in runs] == ["float32", "float32", "q8", "q8"]
    assert runs.held_in.job.plan == runs.held.job.plan
    assert 0 < runs.alone_in.token_bytes < runs.streamed.token_bytes
    now = residuals._at_its_products(runs.held_in.job, FOUND)
    changed = {name for name in vars(FOUND) if getattr(now, name) != getattr(FOUND, name)}
    assert changed == {"q8_gb_per_s", "q8_gflops", "q8_rows_gb_per_s", "q8_few_gflops"}
