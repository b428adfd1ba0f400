"""What a computation takes a device, by the roofline of its operators. Pure arithmetic.

Each operator takes the longer of its bytes over the rate at which it reads them and its
floating-point operations over the peak rate, plus a fixed overhead (Williams et al., "Roofline",
CACM 2009). A product with many rows takes both, one after the other: with the longer of both, a
prompt of 49 came out at 0.6 of its time on a host of ours. Its weights have a rate of their own, as
it may widen them or lay them out anew. A few rows read the weights as one does, and each further
one adds arithmetic, at a rate of its own. All rates are those of the precision: unpacking 4-bit
weights may be slower than memory, half precision has a peak of its own. So has attention, of a
prompt and of one position, and so have the states that lie between products their bytes a second.
"""

from __future__ import annotations

from math import inf
from typing import Literal, NamedTuple

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.model import FEW


class Operator(NamedTuple):
    """One operator: floating-point operations, bytes read and written, and on what numbers.

    `weights` is what a product's matrix is held in, None for an operator that reads none; `dtype`
    is what is computed in, `num_rows` how many rows a product multiplies at once. Of a product's
    bytes `state_bytes` are those of the rows, before and after, and not of the matrix. Attention is
    one operator: "prefill" of many queries, "decode" of one, or a few, over what a cache holds.
    """

    flops: int
    nbytes: int
    weights: str | None = None
    dtype: str = "float32"
    num_rows: int = 1
    state_bytes: int = 0
    attention: Literal["prefill", "decode"] | None = None


# The operators of one computation, one after another.
Work = tuple[Operator, ...]


def work_ns(profile: DeviceProfile, work: Work, num_sharing: int = 1) -> int:
    """Time of a computation's operators, one after another, beside others of devices that compute
    from the same memory; `num_sharing` counts this one.
    """
    most_bps = inf
    if num_sharing > 1 and profile.memory_shared_gb_per_s is not None:
        most_bps = profile.memory_shared_gb_per_s * 1e9 / num_sharing
    return round(1e9 * sum(_operator_s(profile, operator, most_bps) for operator in work))


def _operator_s(profile: DeviceProfile, operator: Operator, most_bps: float) -> float:
    """Of one, with no more than `most_bps` bytes a second from memory."""
    flops, nbytes, weights, dtype, num_rows, state_bytes, attention = operator
    if attention == "prefill":
        rows_s = nbytes / min(most_bps, profile.rows_bps(dtype))
        arithmetic_s = flops / profile.attention_flops_per_s(dtype)
        return profile.overhead_s(dtype) + rows_s + arithmetic_s
    computing_s = flops / profile.flops_per_s(weights or dtype)
    if weights is None and attention is None:
        states_s = nbytes / min(most_bps, profile.states_bps(dtype))
        return profile.overhead_s(dtype) + max(computing_s, states_s)
    reading_s = nbytes / min(most_bps, profile.read_bps(weights))
    if weights is None:
        flops_per_s = profile.decode_attention_flops_per_s(dtype)
        taken_s = reading_s + flops / flops_per_s if flops_per_s else max(computing_s, reading_s)
        return profile.overhead_s(dtype, "attention") + taken_s
    overhead_s = profile.overhead_s(dtype, "product")
    if num_rows > FEW:
        matrix_s = (nbytes - state_bytes) / min(most_bps, profile.rows_bps(weights))
        rows_s = state_bytes / min(most_bps, profile.memory_bps)
        return overhead_s + computing_s + rows_s + matrix_s
    one_s = max(computing_s / num_rows, reading_s)
    further_flops = flops * (num_rows - 1) / num_rows
    return overhead_s + one_s + further_flops / profile.few_flops_per_s(weights)
