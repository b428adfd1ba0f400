"""Modelled points on several workers: the records of each alone, in order, whoever dies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.settings import settings_of
from tpi_bench.measure.attempt import attempted
from tpi_bench.measure.point import measure
from tpi_bench.measure.prepare import prepare
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.side_by_side import SideBySide, measured_side_by_side
from tpi_bench.report.rows import Record

TINY = ("testbed=virtual", "model=debug", "workload.prompt_tokens=8", "workload.num_new_tokens=3")
SABOTEUR = ("system._target_=tests.helpers.saboteur.Saboteur", "+system.rank=1")


def points(cache_dir: Path, *overrides: str) -> list[Settings]:
    """Different programs, precisions, networks and numbers of devices; nine are too many."""
    return [
        settings_of(*TINY, f"cache_dir={cache_dir}", *overrides, *own)
        for own in (
            ("testbed.num_devices=2",),
            ("testbed.num_devices=2", "network=wifi_paper"),
            ("testbed.num_devices=9",),
            ("system=tpi_ring", "testbed.num_devices=3", "network.link_latency_ms=2"),
            ("system=pipeline", "testbed.num_devices=2", "model.weights=q8"),
            ("system=tpi_window2", "testbed.num_devices=4", "testbed.trace=true"),
            ("testbed.num_devices=2", "testbed.fail_rank=1", "testbed.fail_at_s=1e-5"),
            ("testbed.num_devices=2", "device.paper_emulated.memory_gb=0.0001"),
        )
    ]


def told(record: Record) -> dict[str, Any]:
    """All that does not depend on when and by whom it was computed."""
    run = {k: v for k, v in record.run.cells().items() if k not in ("started", "wall_s")}
    devices = [vars(row) | {"pid": 0} for row in record.devices]
    rows = [vars(row) for row in (*record.tokens, *record.spans)]
    return {"run": repr(run), "devices": repr(devices), "rows": repr(rows), "raw": record.config}


@pytest.fixture(scope="module")
def pair() -> Iterator[SideBySide]:
    workers = SideBySide(2)
    yield workers
    workers.end()


def test_records_are_those_of_each_point_alone(cache_dir: Path, pair: SideBySide) -> None:
    """To the bit, with one worker, with two, and in another order."""
    asked = points(cache_dir)
    alone = [told(attempted(settings)) for settings in asked]
    assert alone[0] == told(measure(prepare(asked[0])))
    statuses = [record.run.status for record in pair.records(asked)]
    assert statuses == [*["ok"] * 2, "error", *["ok"] * 3, "device_lost", "oom"]
    for found in (
        [told(record) for record in pair.records(asked)],
        [told(record) for record in measured_side_by_side(iter(asked), 1)],
        [told(record) for record in pair.records(asked[::-1])][::-1],
    ):
        assert found == alone


def test_rows_are_sorted_by_their_start_as_points_were(cache_dir: Path, pair: SideBySide) -> None:
    started = [record.run.started for record in pair.records(points(cache_dir))]
    assert started == sorted(started)
    assert len({*started}) == len(started)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("exit", "_attempt ended with exit status 7"),
        ("raise", "rank 1 failed: RuntimeError: a worker's own mistake (/"),
    ],
)
def test_a_worker_that_dies_costs_its_point(
    cache_dir: Path, pair: SideBySide, harm: str, reason: str
) -> None:
    fine = settings_of(*TINY, "testbed.num_devices=2", f"cache_dir={cache_dir}")
    harmed = settings_of(
        *TINY,
        "testbed.num_devices=2",
        *SABOTEUR,
        f"+system.harm={harm}",
        f"cache_dir={cache_dir}",
    )
    records = list(pair.records([fine, fine, harmed, fine, harmed, *[fine] * 4]))
    statuses = [record.run.status for record in records]
    assert [place for place, status in enumerate(statuses) if status == "error"] == [2, 4]
    assert {record.run.error for record in records} - {None} == {records[2].run.error}
    assert str(records[2].run.error).startswith(reason)
    assert records[2].run.point == harmed.point
    assert records[2].run.system == "tpi"
    assert len({str(told(record)) for record in records if record.run.status == "ok"}) == 1


def test_a_point_that_takes_too_long_is_a_timeout(cache_dir: Path, pair: SideBySide) -> None:
    slow, fine = (
        settings_of(*TINY, "testbed.num_devices=2", f"cache_dir={cache_dir}", *own)
        for own in ((*SABOTEUR, "+system.harm=loop", "timeout_s=0.3"), ("timeout_s=60",))
    )
    late, ok = pair.records([slow, fine])
    assert (late.run.status, ok.run.status) == ("timeout", "ok")
    assert late.run.error == "virtual time had not come to its end after 0.3 s (timeout_s)"
    assert late.run.is_answer


def test_points_are_asked_for_when_there_is_room(cache_dir: Path, pair: SideBySide) -> None:
    """An endless stream gives its first records."""
    fine = settings_of(*TINY, "testbed.num_devices=2", f"cache_dir={cache_dir}")
    asked = itertools.count()
    records = pair.records(fine for _ in asked)
    assert [next(records).run.status for _ in range(3)] == ["ok"] * 3
    assert next(asked) < 40


def test_measured_points_are_refused(cache_dir: Path) -> None:
    for own in (("testbed=processes",), ("testbed=virtual_measured",)):
        settings = settings_of(*TINY, *own, f"cache_dir={cache_dir}")
        with pytest.raises(ValueError, match="is measured on this host, where points side by side"):
            next(measured_side_by_side([settings]))
