"""What limits a way, and why it is not the best."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.measure.test_household import STRONG, WEAK, household
from tpi_bench.measure.bounds import Bound
from tpi_bench.measure.search import Found, Tried
from tpi_bench.measure.ways import Way
from tpi_bench.measure.why_not import kinds, limited_by, read_s
from tpi_bench.report.rows import DeviceRow, Record, RunRow

HOME = household(STRONG, WEAK)  # disks of 1 GB/s
BOUND = Bound(token_s=0.8, weights_s=0.5, links_s=0.3, disk_s=0.0)


def way(*team: int, system: str = "tpi", scheme: str = "tensor", weights: str = "q4") -> Way:
    return Way(team=team, weights=weights, system=system, scheme=scheme, settings=(), shares=None)


def tried(
    of: Way, token_s: float, bound: Bound = BOUND, read: int = 0, kept: float = 1.0, **run: object
) -> Tried:
    """That read so many bytes in all on each device: of 3 tokens, the warm-up and what is kept."""
    row = replace(RunRow.of(), point=f"{of}", status="ok", token_latency_s=token_s, num_tokens=3)
    devices = [
        replace(
            DeviceRow.unmeasured(),
            rank=rank,
            ledger_bytes=5,
            weight_bytes_read=read,
            kept_bytes=kept,
        )
        for rank in range(len(of.team))
    ]
    record = Record(run=replace(row, **run), devices=devices)  # type: ignore[arg-type]
    return Tried(way=of, bound=bound, record=record)


def test_what_is_kept_is_read_once_and_all_else_at_every_pass() -> None:
    each = tried(way(0, 1), 1.0, read=4_400_000_000, kept=400_000_000)
    assert read_s(each, HOME) == pytest.approx(1.0)
    turns = tried(way(0, 1, scheme="layers"), 1.0, read=4_400_000_000, kept=400_000_000)
    assert read_s(turns, HOME) == pytest.approx(2.0)
    mapped = tried(way(0, 1), 1.0, read=4_000_000_000, kept=math.nan)
    assert read_s(mapped, HOME) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bound", "token_s", "read", "limit"),
    [
        (BOUND, 1.0, 0, "memory"),
        (replace(BOUND, weights_s=0.3, links_s=0.5), 1.0, 0, "links"),
        (BOUND, 1.4, 0, "compute"),  # 0.6 s that no bound counts
        (replace(BOUND, disk_s=0.9), 1.0, 0, "disk"),
        (BOUND, 1.0, 3_200_000_000, "disk"),  # 0.8 s of what was read
        (BOUND, 1.0, 2_000_000_000, "memory"),
    ],
)
def test_what_limits_it(bound: Bound, token_s: float, read: int, limit: str) -> None:
    assert limited_by(tried(way(0, 1), token_s, bound, read), HOME) == limit


def test_every_kind_is_told_whether_it_was_run_or_not() -> None:
    found = Found(
        tried=[
            tried(way(0), 0.9),
            tried(way(0, 1), 1.5),
            tried(way(0, 1, weights="q8"), math.nan, status="oom", error="no room; a smaller one"),
        ],
        unrun=[(way(0, 1, system="ring"), replace(BOUND, token_s=7.0, links_s=6.5))],
        lacking=[(way(0, 1, system="galaxy"), replace(BOUND, lacking_bytes=2.5e9))],
    )
    told = {(kind.of, kind.name): kind for kind in kinds(found, HOME)}
    assert told["devices", "1"].why == "tpi on A in q4: the best of all"
    assert told["devices", "2"].why == "tpi on A B in q4: compute; slower than A"
    assert told["weights", "q8"].why == "oom: no room"
    ring, galaxy = told["system", "ring"], told["system", "galaxy"]
    assert (ring.point, ring.bound_s, ring.why) == (None, 7.0, "links, as its bound says; not run")
    assert (galaxy.bound_s, galaxy.why) == (None, "does not fit: 2.5 GB too much at least")


def test_what_is_tried_only_where_memory_is_short_is_told_so() -> None:
    """Its time is that of a precision that does not fit, and beside others that do."""
    short = replace(way(0, 1, system="mmap", weights="float32"), only_short=True)
    (told,) = (
        kind
        for kind in kinds(Found(tried=[tried(way(0), 0.9), tried(short, 30.0)]), HOME)
        if (kind.of, kind.name) == ("system", "mmap")
    )
    assert told.why.startswith("mmap on A B in float32: ")
    assert told.why.endswith(
        "tried only where memory is short, elsewhere no faster than tpi or a pipeline"
    )


def test_a_device_that_is_idle_counts_for_nothing() -> None:
    each = tried(way(1, 0, system="edgeshard", scheme="chain"), 0.5)
    idle = replace(each.record.devices[1], ledger_bytes=0)
    alone = replace(each, record=replace(each.record, devices=[each.record.devices[0], idle]))
    assert alone.team == (1,)
    assert alone.is_another_way
    found = Found(tried=[alone, tried(way(1), 0.5), each])
    assert [t.way.system for t in found.best] == ["tpi", "edgeshard"]
    assert {k.name for k in kinds(found, HOME) if k.of == "devices"} == {"1", "2"}
