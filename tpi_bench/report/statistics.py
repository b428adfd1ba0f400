"""What repeats can show: medians with bootstrap intervals, and ratios of pairs.

Two points are compared repeat by repeat, as those ran next to each other. "A is faster than B"
needs an interval of the ratio that leaves out 1; otherwise no difference is shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
_RESAMPLES = 5000
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A median and where it may lie. With one value `low` and `high` are NaN: it shows nothing."""

    middle: float
    low: float
    high: float
    num: int

    @property
    def is_shown(self) -> bool:
        return not math.isnan(self.low)

    def leaves_out(self, value: float) -> bool:
        return self.is_shown and not self.low <= value <= self.high

    def text(self, pattern: str = "{:.3g}") -> str:
        """As `1.2 [1.1, 1.3]`."""
        middle = pattern.format(self.middle)
        if not self.is_shown:
            return middle
        return f"{middle} [{pattern.format(self.low)}, {pattern.format(self.high)}]"


def median_interval(values: pd.Series) -> Interval:
    """The median with its percentile bootstrap interval (of 95 %).

    Of two to five values that is nearly their range, as it has to be. Of none, all is NaN.
    """
    found = values.dropna().to_numpy(dtype=float)
    if len(found) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    middle = float(np.median(found))
    if len(found) == 1:
        return Interval(middle, math.nan, math.nan, 1)
    from scipy import stats

    if np.ptp(found) == 0:  # of which no resample differs
        return Interval(middle, middle, middle, len(found))
    interval = stats.bootstrap(
        (found,),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return Interval(middle, float(interval.low), float(interval.high), len(found))


def paired_ratio(ours: pd.Series, theirs: pd.Series) -> Interval:
    """`ours` over `theirs`, both indexed by repeat, of the repeats that both have."""
    return median_interval((ours / theirs).dropna())
