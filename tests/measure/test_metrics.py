"""What TTFT and token latency are, on times made by hand."""

from __future__ import annotations

import math

import pytest

from tests.helpers.planned import planned_job
from tpi_bench.contract.job import Outcome
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.speculation import Speculation
from tpi_bench.measure.metrics import percentile, speculated, speed_of, token_rows

S = 1_000_000_000
# The request at 10 s, the first token 2 s later, then gaps of 1, 3 and 2 s.
ANSWER = Generation(
    token_ids=[7, 8, 9, 7],
    request_ns=10 * S,
    token_ns=[12 * S, 13 * S, 16 * S, 18 * S],
    account=[
        {"compute": 2 * S, "sync": 0, "load_wait": 0, "sampling": 0},
        {"compute": S // 2, "sync": S // 4, "load_wait": 0, "sampling": S // 4},
        {"compute": S, "sync": S, "load_wait": S // 4, "sampling": 0},
        {"compute": S, "sync": 0, "load_wait": 0, "sampling": 0},
    ],
    warmup_ttft_ns=5 * S,
)


def test_speed_of_an_answer() -> None:
    speed = speed_of(Outcome(status="ok", generation=ANSWER))
    assert speed.ttft_s == 2.0
    assert speed.warmup_ttft_s == 5.0
    assert speed.token_latency_s == 2.0  # (18 - 12) / 3
    assert speed.token_latency_p50_s == 2.0
    assert speed.token_latency_p95_s == pytest.approx(2.9)
    assert speed.token_latency_p99_s == pytest.approx(2.98)
    assert speed.token_jitter_s == 1.5  # of |3 - 1| and |2 - 3|
    assert speed.num_tokens == 4
    assert speed.unexplained_share == pytest.approx(0.25)  # of 0, 0.75 / 3 and 1 / 2
    assert speed.compute_share == pytest.approx(0.5)  # of 1 / 2, 1 / 3 and 1 / 2
    assert speed.sync_share == pytest.approx(0.25)  # of 1 / 4, 1 / 3 and 0
    assert (speed.load_wait_share, speed.sampling_share) == (0.0, 0.0)


def test_tokens_that_come_together_have_no_gaps_but_the_first() -> None:
    """Passes of 2 and 4 s after the first token, of 3 tokens and 1; of 5 drafted 2 are right."""
    drafted = Generation(
        token_ids=[1, 2, 3, 4, 5],
        request_ns=0,
        token_ns=[S, 3 * S, 3 * S, 3 * S, 7 * S],
        account=[],
        proposed=[4, 1],
        accepted=[2, 0],
    )
    outcome = Outcome(status="ok", generation=drafted)
    speed = speed_of(outcome)
    assert speed.token_latency_s == 1.5  # (7 - 1) / 4
    assert speed.token_latency_p50_s == 1.0  # of 0, 0, 2 and 4
    asked = Speculation(kind="lookup", draft_tokens=4)
    request = Request(prompt_ids=(1,), num_new_tokens=5, speculation=asked)
    job = planned_job(request=request)
    found = speculated(job, outcome, is_library=False)
    assert (found.speculation, found.draft_tokens, found.num_passes) == ("lookup", 4, 2)
    assert (found.pass_latency_s, found.tokens_per_pass) == (3.0, 2.0)
    assert (found.num_proposed, found.num_accepted, found.acceptance) == (5, 2, 0.4)
    plain = speculated(planned_job(), Outcome(status="ok", generation=ANSWER), is_library=True)
    assert (plain.speculation, plain.num_passes, plain.tokens_per_pass) == ("none", 3, 1.0)
    assert plain.num_proposed is None
    assert math.isnan(plain.acceptance)


def test_one_token_has_no_latency() -> None:
    one = Generation(token_ids=[7], request_ns=0, token_ns=[S], account=[])
    speed = speed_of(Outcome(status="ok", generation=one))
    assert (speed.ttft_s, speed.num_tokens) == (1.0, 1)
    assert math.isnan(speed.token_latency_s)
    assert math.isnan(speed.token_jitter_s)
    assert math.isnan(speed.warmup_ttft_s)
    assert math.isnan(speed.unexplained_share)
    assert math.isnan(speed.compute_share)


@pytest.mark.parametrize(("status", "answer"), [("ok", None), ("oom", ANSWER)])
def test_what_failed_has_no_speed(status: str, answer: Generation | None) -> None:
    speed = speed_of(Outcome(status=status, generation=answer))
    assert math.isnan(speed.ttft_s)
    assert speed.num_tokens is None


def test_a_row_a_token_with_where_its_time_went() -> None:
    rows = token_rows(ANSWER)
    assert [(row.token_index, row.token_id, row.gap_s) for row in rows] == [
        (0, 7, 2.0),
        (1, 8, 1.0),
        (2, 9, 3.0),
        (3, 7, 2.0),
    ]
    third = rows[2]
    assert (third.compute_s, third.sync_s, third.load_wait_s) == (1.0, 1.0, 0.25)
    assert third.unexplained_s == 0.75


def test_what_was_not_split_is_nan() -> None:
    (row,) = token_rows(Generation(token_ids=[1], request_ns=0, token_ns=[S], account=[]))
    assert row.gap_s == 1.0
    assert math.isnan(row.compute_s)
    assert math.isnan(row.unexplained_s)
    assert token_rows(None) == []


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3.0], 0.95, 3.0), ([1.0, 2.0], 0.5, 1.5), ([4.0, 1.0, 3.0, 2.0], 0.95, 3.85)],
)
def test_percentiles_are_interpolated(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == pytest.approx(expected)


def test_a_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 0.5))
