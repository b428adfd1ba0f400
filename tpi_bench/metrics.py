"""The metrics, one definition for all systems. Times in seconds; what was not measured is NaN.

TTFT: from the request at the master to the first sampled token. Token latency: mean gap between
later tokens, (t_last - t_first) / (n - 1); the raw gaps are kept in the token table. Warm-up is
apart.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from tpi_bench.workload import Generation

NAN = math.nan


def token_gaps_s(generation: Generation) -> list[float]:
    """Time between consecutive tokens after the first."""
    stamps = generation.token_ns
    return [(b - a) / 1e9 for a, b in itertools.pairwise(stamps)]


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the sorted values; NaN of nothing."""
    if not values:
        return NAN
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(generation: Generation) -> dict[str, float]:
    """The run row's speed columns."""
    gaps = token_gaps_s(generation)
    warmup = generation.warmup_ttft_ns
    accounts = token_rows(generation)[1:]
    shares = [r["unexplained_s"] / r["gap_s"] for r in accounts if r["gap_s"] > 0]
    return {
        "ttft_s": (generation.token_ns[0] - generation.request_ns) / 1e9,
        "warmup_ttft_s": NAN if warmup is None else warmup / 1e9,
        "token_latency_s": statistics.fmean(gaps) if gaps else NAN,
        "token_latency_p50_s": percentile(gaps, 0.5),
        "token_latency_p95_s": percentile(gaps, 0.95),
        "num_tokens": len(generation.token_ids),
        "unexplained_share": statistics.median(shares) if shares else NAN,
    }


def token_rows(generation: Generation) -> list[dict[str, Any]]:
    """One row a token: its gap (TTFT for token 0) and where on the master that time went."""
    rows = []
    previous = generation.request_ns
    for index, (token_id, stamp) in enumerate(
        zip(generation.token_ids, generation.token_ns, strict=True)
    ):
        gap = (stamp - previous) / 1e9
        row: dict[str, Any] = {"token_index": index, "token_id": token_id, "gap_s": gap}
        account = generation.account[index] if index < len(generation.account) else {}
        for kind in ("compute", "sync", "load_wait", "sampling"):
            row[f"{kind}_s"] = account[kind] / 1e9 if kind in account else NAN
        row["unexplained_s"] = gap - sum(account.values()) / 1e9 if account else NAN
        rows.append(row)
        previous = stamp
    return rows
