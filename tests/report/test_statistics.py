"""Medians with intervals, and ratios of pairs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from tpi_bench.report.statistics import median_interval, paired_ratio


def test_one_value_shows_nothing() -> None:
    found = median_interval(pd.Series([2.0]))
    assert (found.middle, found.num, found.is_shown) == (2.0, 1, False)
    assert not found.leaves_out(1)
    assert found.text() == "2"


def test_nothing_has_no_median() -> None:
    assert math.isnan(median_interval(pd.Series([math.nan])).middle)


def test_of_few_values_it_is_their_range() -> None:
    found = median_interval(pd.Series([1.0, 3.0, 2.0]))
    assert (found.low, found.middle, found.high) == (1.0, 2.0, 3.0)
    assert found.text() == "2 [1, 3]"


def test_equal_values() -> None:
    assert median_interval(pd.Series([1.5] * 4)).text() == "1.5 [1.5, 1.5]"


@pytest.mark.parametrize("seed", range(3))
def test_it_is_as_wide_as_the_median_varies(seed: int) -> None:
    """The error of the median of n normal values is 1.253 / sqrt(n)."""
    found = median_interval(pd.Series(np.random.default_rng(seed).normal(size=200)))
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1.253 / math.sqrt(200), rel=0.35)
    assert found.low < found.middle < found.high


def test_ratios_are_of_pairs() -> None:
    """Both drift by half, their ratio does not; a repeat that one lacks is in no pair."""
    ours = pd.Series([1.1, 1.65, 2.2], index=[0, 1, 2])
    theirs = pd.Series([1.0, 1.5, 9.9], index=[0, 1, 3])
    found = paired_ratio(ours, theirs)
    assert found.num == 2
    assert found.middle == pytest.approx(1.1)
    assert found.leaves_out(1)
