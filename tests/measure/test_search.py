"""The search skips much and never the best: beside running everything."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.advising import SMALL, Asked, asked
from tpi_bench.measure.bounds import Bound
from tpi_bench.measure.search import Bounded, Effort, Run, groups_of, search
from tpi_bench.measure.side_by_side import measured_side_by_side
from tpi_bench.measure.ways import Way
from tpi_bench.report.rows import DeviceRow, Record, RunRow

COLLECTIVES = ("star", "ring", "direct", "tree")
PRECISIONS = ("q4", "q8", "float32")


def scripted(seed: int) -> tuple[list[Bounded], dict[Way, float]]:
    """Ways with times, and bounds below them."""
    drawn = random.Random(seed)
    bounded, times = [], {}
    teams = [(0,), (0, 1), (1, 0), (0, 1, 2)]
    for team, weights, collective, wire in itertools.product(
        teams, PRECISIONS, COLLECTIVES, ("auto", "q8")
    ):
        way = Way(
            team=team,
            weights=weights,
            system="tpi",
            scheme="tensor",
            settings=(("collective", collective), ("wire", wire)),
            shares=None,
        )
        times[way] = drawn.uniform(1, 9) * (1 + PRECISIONS.index(weights))
        bound_s = times[way] * drawn.uniform(0.5, 1)
        bounded.append((way, Bound(token_s=bound_s, weights_s=bound_s, links_s=0, disk_s=0)))
    return bounded, times


def run_of(times: dict[Way, float], failing: Sequence[Way] = ()) -> Run:
    def run(ways: Sequence[Way]) -> Iterator[Record]:
        for way in ways:
            row = replace(RunRow.of(), point=str(way), status="ok", token_latency_s=times[way])
            if way in failing:
                row = replace(row, status="oom", token_latency_s=math.nan)
            yield Record(run=row)

    return run


def of_system(system: str, number: int, token_s: float, bound_s: float) -> tuple[Bounded, float]:
    settings = (("number", number),)
    way = Way(
        team=(0,), weights="q4", system=system, scheme="layers", settings=settings, shares=None
    )
    return (way, Bound(token_s=bound_s, weights_s=bound_s, links_s=0, disk_s=0)), token_s


def test_kinds_far_above_their_bounds_do_not_take_all_the_time() -> None:
    """Twenty ways whose bounds promise 1 s and that take 6, and one of 3 s at a bound of 2."""
    loose = [of_system("prima", number, 6.0, 1.0 + number / 100) for number in range(20)]
    others = [of_system("tpi", number, bound + 1, bound) for number, bound in ((0, 2.0), (1, 4.0))]
    times = {way: token_s for (way, _), token_s in loose + others}
    bounded = [each for each, _ in loose + others]
    effort = Effort(num_points=5)
    found = search(bounded, run_of(times), effort)
    assert [tried.way.system for tried in found.tried][:2] == ["prima", "tpi"]
    assert found.best[0].token_s == 3.0
    assert found.over_bounds["prima"] > 5
    assert found.left  # it is told that the other nineteen might have been better
    changed = search(
        bounded, run_of(times), Effort(num_points=1), num_best=1, over_bounds=found.over_bounds
    )
    assert changed.best[0].token_s == 3.0


@pytest.mark.parametrize("seed", range(12))
def test_nothing_among_the_best_is_skipped(seed: int) -> None:
    """The ten best choices, and the best of each group, are those of all ways together."""
    bounded, times = scripted(seed)
    found = search(bounded, run_of(times), Effort(num_points=999))
    assert not found.left
    assert len(found.tried) < 0.8 * len(bounded)
    every = search(
        [(way, replace(bound, token_s=0.0)) for way, bound in bounded],
        run_of(times),
        Effort(num_points=999),
    )
    assert len(every.tried) == len(bounded)
    assert [t.way.choice for t in found.best[:10]] == [t.way.choice for t in every.best[:10]]
    assert [t.token_s for t in found.best[:10]] == [t.token_s for t in every.best[:10]]
    for group in {group for way in times for group in groups_of(way)}:
        own = [way for way in times if group in groups_of(way)]
        mine = [t.token_s for t in found.best if group in groups_of(t.way)]
        assert min(mine) == min(times[way] for way in own)


def test_what_was_skipped_and_what_was_left_are_all_there_is() -> None:
    bounded, times = scripted(1)
    lacking = [(way, replace(bound, lacking_bytes=1.0)) for way, bound in bounded[:5]]
    found = search([*lacking, *bounded[5:]], run_of(times), Effort(num_points=10))
    assert len(found.tried) == 10
    assert len(found.lacking) == 5
    assert found.left
    counted = len(found.tried) + 5 + found.skipped.total() + len(found.left)
    assert counted == found.num_ways == len(bounded)
    assert set(found.skipped) == {"memory"}


def test_time_that_is_over_ends_it() -> None:
    bounded, times = scripted(2)
    assert not search(bounded, run_of(times), Effort(until_s=0.0)).tried


def test_a_way_that_leaves_devices_idle_is_an_answer_where_it_is_the_only_one() -> None:
    """Where the time was over before the same was run on one device."""
    way = Way(
        team=(0, 1), weights="q4", system="edgeshard", scheme="layers", settings=(), shares=None
    )
    row = replace(RunRow.of(), point="a", status="ok", token_latency_s=2.0)
    devices = [replace(DeviceRow.unmeasured(), rank=rank, ledger_bytes=1 - rank) for rank in (0, 1)]
    bound = Bound(token_s=1.0, weights_s=1.0, links_s=0, disk_s=0)
    found = search([(way, bound)], lambda _: iter([Record(run=row, devices=devices)]), Effort())
    assert found.tried[0].is_another_way
    assert found.best == found.tried


def test_a_way_that_fails_is_no_answer() -> None:
    bounded, times = scripted(3)
    fastest = min(times, key=lambda way: times[way])
    found = search(bounded, run_of(times, [fastest]), Effort(num_points=999))
    assert fastest not in [tried.way for tried in found.best]
    rest = {way: seconds for way, seconds in times.items() if way != fastest}
    assert found.best[0].token_s == min(rest.values())


def test_the_best_alone_takes_fewer_points() -> None:
    bounded, times = scripted(4)
    found = search(bounded, run_of(times), Effort(num_points=999), num_best=1)
    assert found.best[0].token_s <= min(
        seconds for way, seconds in times.items() if way.weights == found.best[0].way.weights
    )


@pytest.mark.parametrize(
    "given",
    [
        ("network=wifi", "network.bandwidth_mbps=5", "model.weights=q4"),
        pytest.param(
            ("network=switch", "network.link_latency_ms=0.02", "system=tpi", "model.weights=q8"),
            marks=pytest.mark.product,
        ),
    ],
)
def test_beside_an_exhaustive_sweep(given: tuple[str, ...], cache_dir: Path) -> None:
    """Real points of a small household, some of which stream: the same ten, in the same order."""
    devices = "device=[fast(4,0.0011,0.2,0.05),2*slow(4,0.0007,0.05,0.02)]"
    home: Asked = asked(*SMALL, devices, *given, cache_dir=cache_dir)
    bounded = home.bounded()
    records = measured_side_by_side(home.settings(way) for way, _ in bounded)
    every = dict(zip([way for way, _ in bounded], records, strict=True))

    def run(ways: Sequence[Way]) -> Iterator[Record]:
        return iter([every[way] for way in ways])

    found = search(bounded, run, Effort(num_points=999))
    times = {way: record.run.token_latency_s for way, record in every.items()}
    best: dict[object, float] = {}
    for way, seconds in sorted(times.items(), key=lambda each: each[1]):
        num_working = sum(device.ledger_bytes > 0 for device in every[way].devices)
        if seconds == seconds and not num_working == 1 < len(way.team):  # then it is tpi on one
            best.setdefault(way.choice, seconds)
    expected = sorted(best.values())[:10]
    assert [tried.token_s for tried in found.best[:10]] == expected
    assert len(found.tried) < 0.8 * len(bounded)
