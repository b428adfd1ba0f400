"""How long an experiment took, from when its points started: what is made ready counts too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_BREAK_S = 900  # between two starts: somebody had stopped


def seconds_each(runs: pd.DataFrame) -> pd.Series:
    """Of each point, by the index of its row: to the next one's start, or its own time if longer
    than a break lies between; the last one's own."""
    import pandas as pd

    if runs.empty:
        return pd.Series(dtype=float)
    starts = pd.to_datetime(runs.started, format="ISO8601").sort_values()
    to_next = starts.diff().dt.total_seconds().shift(-1)
    own = runs.wall_s.reindex(starts.index).fillna(0.0)
    return to_next.where(to_next < _BREAK_S, own)


def seconds_of(runs: pd.DataFrame) -> float:
    """Of all of them."""
    return float(seconds_each(runs).sum())
