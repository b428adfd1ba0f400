"""How far the logits of two correct programs may lie apart that only round at other places.

Each value that is rounded on the way from the embedding to a logit is off by at most a share u of
it, the unit roundoff of its type, up or down whatever the others are: R of them add up to
sqrt(R) u of the logits' size. A layer rounds 17: its two norms with their weights, its four
products, and the weights in them where these are narrowed, shares and mixed heads, gate and its
product with up, and two sums. Its turned queries and keys and its scores count 6 x 6 times each: an
error of a score is a relative one of its share of attention, and scores go up to about 6. The ends
round 5, and a product of n values n sums besides, always in fp32. Two programs are off
independently: sqrt(2) of all that.

No bound for the worst case, which no program of 30 layers comes near, but what chance does not
exceed: measured differences are a tenth to eight tenths of it. `oracle.py` puts it beside them.
"""

from __future__ import annotations

import math

from tpi_bench.contract.model import ModelConfig

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_ROUNDED_IN_LAYER = 17
_ROUNDED_IN_SCORES = 3
_SCORE = 6.0
_ROUNDED_AT_ENDS = 5


def logit_bound(config: ModelConfig, dtype: str, num_positions: int, largest: float) -> float:
    """For programs that compute in `dtype`; `largest` is the largest logit's absolute value."""
    in_layer = _ROUNDED_IN_LAYER + _ROUNDED_IN_SCORES * _SCORE**2
    rounded = in_layer * config.num_layers + _ROUNDED_AT_ENDS
    heads = config.num_heads * config.head_dim
    lengths = 2 * config.hidden + config.head_dim + num_positions + heads + config.intermediate
    summed = config.num_layers * lengths + config.hidden
    share = rounded * UNIT_ROUNDOFF[dtype] ** 2 + summed * UNIT_ROUNDOFF["float32"] ** 2
    return largest * math.sqrt(2 * share)
