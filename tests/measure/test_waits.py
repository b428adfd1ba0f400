"""What waits and reads cost a computation: turns from spans, and a line through two sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpi_bench.contract.runtime import Span
from tpi_bench.measure import waits
from tpi_bench.measure.waits import _Blocks, _line, _turns, wait_costs


def spans_of(*given: tuple[str, str, int, int]) -> list[Span]:
    return [Span(*each) for each in given]


def test_a_turn_is_what_is_left_without_rests_and_waits() -> None:
    """Held: 10 to 40. Rested: 50 to 100, of which 30 resting. Streamed: 110 to 200, of which 50
    waiting; asking, 8 in all, counts. Reads themselves are no part of it.
    """
    spans = spans_of(
        ("compute", "held", 0, 10),
        ("compute", "ffn", 12, 38),
        ("compute", "rested", 40, 50),
        ("compute", "rest", 55, 85),
        ("compute", "streamed", 100, 110),
        ("load_wait", "request", 112, 115),
        ("read", "ffn_0", 115, 170),
        ("load_wait", "ffn_0", 120, 170),
        ("load_wait", "request", 180, 185),
        ("compute", "end", 200, 201),
    )
    found = list(_turns(spans[::-1]))
    assert found == [("held", (30, 0)), ("rested", (20, 0)), ("streamed", (40, 8))]


def blocks(nbytes: float, ns: float) -> _Blocks:
    return _Blocks(nbytes=nbytes, rested_ns=40_000.0, streamed_ns=ns, asking_ns=2 * ns)


@pytest.mark.parametrize(
    ("small_ns", "large_ns", "line"),
    [
        (1_500, 6_000, (1_000, 2.0)),
        (500, 5_000, (0.0, 2.0)),  # no less than nothing,
        (1_500, 1_400, (1_499, 1e3)),  # and bytes take something
    ],
)
def test_small_and_large_blocks_tell_bytes_from_the_rest(
    small_ns: float, large_ns: float, line: tuple[float, float]
) -> None:
    found = _line(blocks(1_000, 0), blocks(10_000, 0), small_ns, large_ns)
    assert found == pytest.approx(line)


def test_what_waits_cost_by_the_names_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1000 bytes 1.5 us, of 10 000 bytes 6; asking takes twice as long. Two are cold in a rest:
    what adds a block's result up, and the next block.
    """
    found = {"q4": blocks(1_000, 1_500), "float32": blocks(10_000, 6_000)}
    monkeypatch.setattr(waits, "_blocks", lambda held, folder: found[held])
    assert wait_costs(Path()) == pytest.approx(
        {
            "read_overhead_us": 2.0,
            "asking_gb_per_s": 1.0,
            "streamed_overhead_us": 1.0,
            "streamed_gb_per_s": 2.0,
            "cold_overhead_us": 20.0,
        }
    )
