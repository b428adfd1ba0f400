"""The host's rates are the best of probes before and after a point, and more where it was busy."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.settings import settings_of
from tpi_bench.contract.job import Outcome
from tpi_bench.measure import point
from tpi_bench.measure.probe import HostLimits
from tpi_bench.report.rows import Limits, Record, RunRow, Speed
from tpi_bench.report.text import generation_text, point_line

SPEED = replace(Speed.unmeasured(), token_latency_s=1.0)


def host(rate: float, busy: float) -> HostLimits:
    return HostLimits(memory_bps=rate, disk_bps=1.0, busy_cores=busy)


@pytest.mark.parametrize(
    ("first", "later", "best", "num_probes", "least_busy"),
    [
        (host(5.0, 0.0), [host(4.0, 0.1)], 5.0, 1, 0.0),  # quiet: one after the point
        (host(2.0, 0.9), [host(5.0, 0.1)], 5.0, 1, 0.1),
        (host(2.0, 0.9), [host(3.0, 0.8), host(4.0, 0.7), host(3.0, 0.6)], 4.0, 3, 0.6),
        (host(0.5, 0.0), [host(0.6, 0.0), host(4.0, 0.0)], 4.0, 2, 0.0),  # it was faster than that
    ],
)
def test_the_best_of_several_probes_counts(
    first: HostLimits,
    later: list[HostLimits],
    best: float,
    num_probes: int,
    least_busy: float,
    probes: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two cores; a token of this model reads one byte, in one second."""
    asked, left = [], list(later)

    def probe(*arguments: Any) -> HostLimits:
        asked.append(arguments)
        return left.pop(0)

    def limits_of(testbed: Any, system: Any, job: Any, outcome: Any, host: HostLimits) -> Limits:
        return replace(
            Limits.unmeasured(),
            memory_bps=host.memory_bps,
            limit_token_s=1 / host.memory_bps,
            busy_cores_probe=host.busy_cores,
        )

    monkeypatch.setattr(point, "host_limits", probe)
    monkeypatch.setattr(point, "point_limits", limits_of)
    monkeypatch.setattr(point, "available_cpus", lambda: [0, 1])
    slept: list[float] = []
    monkeypatch.setattr(point, "_PAUSES_S", probes)
    monkeypatch.setattr(point.time, "sleep", slept.append)
    prepared: Any = SimpleNamespace(settings=SimpleNamespace(testbed=None, system=None), job=None)
    outcome = Outcome(status="ok")
    found, right_after = point._limits_seen_again(prepared, outcome, SPEED, first)
    assert right_after == later[0]
    assert (found.memory_bps, len(asked)) == (best, num_probes)
    assert slept == [0.0, 0.5, 1.0][:num_probes]
    assert found.busy_cores_probe == least_busy
    failed = Outcome(status="oom")
    found, right_after = point._limits_seen_again(prepared, failed, SPEED, first)
    assert (found.memory_bps, right_after) == (first.memory_bps, None)
    assert len(asked) == num_probes


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({"busy_cores_start": 0.3, "busy_cores_probe": 0.3}, False),
        ({"busy_cores_start": 0.5}, True),
        ({"busy_cores_probe": 0.5}, True),
        ({"busy_cores_start": 0.5, "cores": None}, False),
        ({"busy_cores_start": math.nan}, False),
        ({"busy_cores_start": 0.0, "steal_share": 0.05}, True),
        ({"busy_cores_start": 0.0, "steal_share": 0.01}, False),
    ],
)
def test_a_busy_host_is_told(changes: dict, is_told: bool) -> None:
    run = replace(RunRow.of(), status="ok", **({"cores": 2} | changes))
    assert ("measured on a busy host" in point_line(run, ["x=1"])) is is_told


@pytest.mark.parametrize(
    ("testbed", "measures"),
    [("processes", True), ("virtual", False), ("virtual_measured", True), ("twin", True)],
)
def test_who_measures_this_host_takes_its_turn(testbed: str, measures: bool) -> None:
    assert settings_of(f"testbed={testbed}").testbed.measures_here is measures


@pytest.mark.parametrize(
    ("cost", "words"),
    [("modelled", "a formula of it is wrong: of the collective's"), ("real", "the host was slow")],
)
def test_why_a_point_may_be_faster_than_its_limit(cost: str, words: str) -> None:
    """In modelled time no host was measured: an extender's formula does not fit what is run."""
    run = replace(RunRow.of(), status="ok", cost=cost, beats_limit=True, token_latency_s=0.1)
    assert f"faster than its limit ({words}" in point_line(run, ["x=1"])
    assert f"note: faster than its limit, so {words}" in generation_text(Record(run=run))


@pytest.mark.parametrize(
    ("device", "words"), [("pi", "10.0 GB/s 99"), ("pi, pc", "10.0 GB/s, the")]
)
def test_the_rate_of_the_slowest_is_told_as_such(device: str, words: str) -> None:
    run = replace(RunRow.of(), status="ok", device=device, memory_bps=1e10, limit_memory_s=0.099)
    timed = replace(run, token_latency_s=0.1, limit_token_s=0.099)
    assert f"memory at {words}" in generation_text(Record(run=timed))


@pytest.mark.parametrize(("jitter_s", "words"), [(math.nan, ""), (0.002, "jitter 2.0, ")])
def test_a_single_gap_has_no_jitter_to_tell(jitter_s: float, words: str) -> None:
    run = replace(RunRow.of(), status="ok", num_tokens=2, token_latency_s=0.1)
    percentiles = {f"token_latency_p{share}_s": 0.1 for share in (50, 95, 99)}
    timed = replace(run, token_jitter_s=jitter_s, **percentiles)
    line = f"100.0 ms   (p50 100.0, p95 100.0, p99 100.0, {words}2 tokens)"
    assert line in generation_text(Record(run=timed))
