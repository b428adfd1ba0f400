"""What the devices of a point did in its last token, from their spans: four things and a rest.

At each moment a device computes, or waits for its disk; if neither, it waits for the others as long
as any of them does, and once none does and all exchange, the links have it: that is the part of a
token in which nobody works and messages are on their way. The rest is Python between spans. The
five are shares of the token and add up to one, for each device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.fig_token import last_tokens

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("links", "compute", "loads", "waits", "other")
_WORK = ("compute", "sampling")
_LOAD = "load_wait"
_BACKGROUND = "read"


def with_parts(runs: pd.DataFrame, spans: pd.DataFrame) -> pd.DataFrame:
    """The run table with a column a part, the mean of the devices; NaN of points without spans."""
    found = last_tokens(runs, spans)
    shares = [
        dict.fromkeys(PARTS, np.nan) if token is None else parts_of(token).mean().to_dict()
        for token in found.token
    ]
    return runs.assign(**{part: [share[part] for share in shares] for part in PARTS})


def parts_of(token: pd.DataFrame) -> pd.DataFrame:
    """A row a device, a column a part, of a token's spans as `last_tokens` cuts them."""
    import pandas as pd

    length = token.token_s.iloc[0]
    edges = np.unique(np.concatenate([[0.0, length], token.start_s, token.end_s]))
    lengths = np.diff(edges) / length
    ranks = sorted(token["rank"].unique())
    works, loads, in_span = (
        np.array([_covered(edges, token[(token["rank"] == rank) & wanted]) for rank in ranks])
        for wanted in (
            token.kind.isin(_WORK),
            token.kind == _LOAD,
            token.kind != _BACKGROUND,
        )
    )
    loads &= ~works
    is_anyone_busy = (works | loads).any(axis=0)
    all_exchange = ~is_anyone_busy & in_span.all(axis=0)
    others_busy = ~works & ~loads & is_anyone_busy
    is_rest = np.broadcast_to(~is_anyone_busy & ~all_exchange, works.shape)
    masks = {
        "links": np.broadcast_to(all_exchange, works.shape),
        "compute": works,
        "loads": loads,
        "waits": others_busy,
        "other": is_rest,
    }
    return pd.DataFrame({part: mask @ lengths for part, mask in masks.items()}, index=ranks)


def _covered(edges: np.ndarray, spans: pd.DataFrame) -> np.ndarray:
    """Whether any of the spans covers what is between each two edges."""
    depth = np.zeros(len(edges), dtype=int)
    np.add.at(depth, np.searchsorted(edges, spans.start_s), 1)
    np.add.at(depth, np.searchsorted(edges, spans.end_s), -1)
    return np.cumsum(depth)[:-1] > 0
