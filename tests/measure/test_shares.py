"""Dividing a model by what memories and disks can give in a token's time."""

from __future__ import annotations

import itertools
import math

import pytest

from tpi_bench.measure.shares import Hand, in_turns, together

FAST = Hand(room=4e9, memory_bps=40e9, disk_bps=2e9)
SLOW = Hand(room=8e9, memory_bps=10e9, disk_bps=1e9)


def test_what_fits_follows_the_memories_rates() -> None:
    dealt = together([FAST, SLOW], 4e9)
    assert dealt.shares == (80.0, 20.0)
    assert dealt.token_s == pytest.approx(4e9 / 50e9)


def test_a_device_that_is_full_has_no_more_than_its_disk_brings() -> None:
    """10 GB: in t seconds the fast one does 4 GB + 2 t, the slow one 10 t, until that is 8 GB."""
    dealt = together([FAST, SLOW], 10e9)
    assert dealt.token_s == pytest.approx(0.5)
    assert dealt.shares == (50.0, 50.0)


def test_where_all_are_full_the_disks_share_the_rest() -> None:
    """16 GB: 4 GB + 2 t and 8 GB + t."""
    dealt = together([FAST, SLOW], 15e9)
    assert dealt.token_s == pytest.approx(1.0)
    assert dealt.shares == (40.0, 60.0)


def test_in_turns_the_fastest_has_all_that_it_can() -> None:
    dealt = in_turns([FAST, SLOW], 3e9)
    assert dealt.shares == (100.0, 0.1)  # nobody has nothing
    assert dealt.token_s == pytest.approx(3e9 / 40e9)


def test_in_turns_a_disk_brings_what_it_can_meanwhile() -> None:
    """In its turn the fast one computes f while its disk brings f - 4 GB: f / 40 = (f - 4) / 2."""
    dealt = in_turns([FAST, SLOW], 8e9)
    fast = 4e9 / (1 - 2 / 40)
    assert dealt.token_s == pytest.approx(fast / 40e9 + (8e9 - fast) / 10e9)
    assert dealt.shares[0] == pytest.approx(100 * fast / 8e9, abs=0.1)


def test_without_a_disk_what_is_too_much_is_too_much() -> None:
    held = Hand(room=1e9, memory_bps=10e9, disk_bps=0.0)
    assert in_turns([held, held], 2e9).token_s == pytest.approx(0.2)
    assert in_turns([held, held], 2.1e9).token_s == math.inf


@pytest.mark.parametrize("nbytes", [1e9, 6e9, 11e9, 14e9])
@pytest.mark.parametrize("deal", [together, in_turns])
def test_no_other_division_is_faster(nbytes: float, deal: object) -> None:
    hands = [FAST, SLOW, Hand(room=1e9, memory_bps=20e9, disk_bps=0.1e9)]

    def token_s(parts: list[float]) -> float:
        reading = [part / hand.memory_bps for part, hand in zip(parts, hands, strict=True)]
        loading = [
            max(0.0, part - hand.room) / hand.disk_bps
            for part, hand in zip(parts, hands, strict=True)
        ]
        if deal is together:
            return max(*reading, *loading)
        return sum(map(max, reading, loading))

    steps = range(0, 101, 5)
    grid = [
        [nbytes * a / 100, nbytes * b / 100, nbytes * (100 - a - b) / 100]
        for a, b in itertools.product(steps, steps)
        if a + b <= 100
    ]
    best = deal(hands, nbytes).token_s  # type: ignore[operator]
    assert best <= min(map(token_s, grid)) * (1 + 1e-6)
