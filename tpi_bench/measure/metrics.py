"""The metrics, one definition for all systems. Times in seconds; what was not measured is NaN.

TTFT: from the request at the master to the first sampled token. Token latency: mean gap between
later tokens, (t_last - t_first) / (n - 1); the raw gaps are kept in the token table. Tokens that a
pass of speculation gives together come at one time: the first of them has the whole gap, the others
0, and percentiles are of all gaps, these zeros too. Warm-up is apart. Perplexity: how many equally
likely tokens would be as hard to guess as the text's.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.request import Generation
from tpi_bench.report.rows import Speculated, Speed, TokenRow


def token_gaps_s(generation: Generation) -> list[float]:
    """Time between consecutive tokens after the first."""
    stamps = generation.token_ns
    return [(b - a) / 1e9 for a, b in itertools.pairwise(stamps)]


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the sorted values; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def jitter_s(gaps: Sequence[float]) -> float:
    """Mean difference of neighbours, so that a slow drift is none; NaN of fewer than two gaps."""
    steps = [abs(b - a) for a, b in itertools.pairwise(gaps)]
    return statistics.fmean(steps) if steps else math.nan


def speed_of(outcome: Outcome) -> Speed:
    """The run row's speed columns; empty for a run that is not ok."""
    generation = outcome.generation
    if generation is None or outcome.status != "ok":
        return Speed.unmeasured()
    gaps = token_gaps_s(generation)
    first_s, latencies_s = zip(*map(times_s, [generation, *outcome.by_round]), strict=True)
    has_interval = bool(outcome.by_round)
    warmup_ns = generation.warmup_ttft_ns
    later = [row for row in token_rows(generation)[1:] if row.gap_s > 0]
    return Speed(
        ttft_s=first_s[0],
        warmup_ttft_s=math.nan if warmup_ns is None else warmup_ns / 1e9,
        token_latency_s=latencies_s[0],
        token_latency_p50_s=percentile(gaps, 0.5),
        token_latency_p95_s=percentile(gaps, 0.95),
        token_latency_p99_s=percentile(gaps, 0.99),
        token_jitter_s=jitter_s(gaps),
        ttft_low_s=min(first_s[1:]) if has_interval else math.nan,
        ttft_high_s=max(first_s[1:]) if has_interval else math.nan,
        token_latency_low_s=min(latencies_s[1:]) if has_interval else math.nan,
        token_latency_high_s=max(latencies_s[1:]) if has_interval else math.nan,
        num_tokens=len(generation.token_ids),
        compute_share=_median([row.compute_s / row.gap_s for row in later]),
        sync_share=_median([row.sync_s / row.gap_s for row in later]),
        load_wait_share=_median([row.load_wait_s / row.gap_s for row in later]),
        sampling_share=_median([row.sampling_s / row.gap_s for row in later]),
        unexplained_share=_median([row.unexplained_s / row.gap_s for row in later]),
    )


def speculated(job: Job, outcome: Outcome, *, is_library: bool) -> Speculated:
    """How a run's tokens were drafted, and what its passes gave."""
    generation, asked = outcome.generation, job.request.speculation
    given = None if asked is None else asked.acceptance
    found = replace(
        Speculated.unmeasured(),
        speculation=asked.kind if asked else "none",
        draft_tokens=asked.draft_tokens if asked else None,
        draft_model=job.draft_name or None,
        acceptance_asked=math.nan if given is None else given,
    )
    if generation is None or outcome.status != "ok":
        return found
    num_later, num_passes = len(generation.token_ids) - 1, generation.num_passes
    if num_passes and not (is_library and asked and not generation.proposed):
        decoding_s = (generation.token_ns[-1] - generation.token_ns[0]) / 1e9
        found = replace(
            found,
            num_passes=num_passes,
            pass_latency_s=decoding_s / num_passes,
            tokens_per_pass=num_later / num_passes,
        )
    if asked and generation.proposed:
        proposed, accepted = sum(generation.proposed), sum(generation.accepted)
        share = accepted / proposed if proposed else math.nan
        found = replace(found, num_proposed=proposed, num_accepted=accepted, acceptance=share)
    return found


def times_s(generation: Generation) -> tuple[float, float]:
    """TTFT and token latency."""
    gaps = token_gaps_s(generation)
    first_s = (generation.token_ns[0] - generation.request_ns) / 1e9
    return first_s, statistics.fmean(gaps) if gaps else math.nan


def perplexity_of(generation: Generation | None) -> float:
    """Of a given text: exp of the mean of -ln p over its tokens; NaN where there was none."""
    if generation is None or not generation.log_probs:
        return math.nan
    return math.exp(-statistics.fmean(generation.log_probs))


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def token_rows(generation: Generation | None) -> list[TokenRow]:
    """One row a token: its gap (TTFT for token 0) and where on the master that time went."""
    if generation is None:
        return []
    accounts = itertools.chain(generation.account, itertools.repeat({}))
    stamps = [generation.request_ns, *generation.token_ns]
    return [
        _token_row(index, token_id, (end - start) / 1e9, account)
        for index, (token_id, (start, end), account) in enumerate(
            zip(generation.token_ids, itertools.pairwise(stamps), accounts, strict=False)
        )
    ]


def _token_row(index: int, token_id: int, gap_s: float, account: dict[str, int]) -> TokenRow:
    def spent_s(kind: str) -> float:
        return account[kind] / 1e9 if kind in account else math.nan

    return TokenRow(
        token_index=index,
        token_id=token_id,
        gap_s=gap_s,
        compute_s=spent_s("compute"),
        sync_s=spent_s("sync"),
        load_wait_s=spent_s("load_wait"),
        sampling_s=spent_s("sampling"),
        unexplained_s=gap_s - sum(account.values()) / 1e9 if account else math.nan,
    )
