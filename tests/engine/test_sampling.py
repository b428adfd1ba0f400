"""Sampling on the master."""

from __future__ import annotations

import pytest
import torch

from tpi_bench.contract.request import Sampling
from tpi_bench.engine.sampling import Sampler, filter_logits, greedy
from tpi_bench.virtual.operators import count_work

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5])


def test_greedy_takes_the_largest() -> None:
    assert Sampler(Sampling())(LOGITS) == 1


def test_greedy_takes_the_first_of_equals_and_is_an_operator_where_they_are_counted() -> None:
    logits = torch.tensor([1.0, 3.0, -torch.inf, 3.0])
    assert greedy(logits) == 1
    token, work = count_work(lambda: greedy(logits))
    assert token == 1
    assert work[0].nbytes == 4 * 4 + 8
    assert greedy(logits.to("meta")) == 0


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    kept = filter_logits(LOGITS, Sampling(temperature=1.0, top_k=2)).isfinite()
    assert kept.tolist() == [False, True, False, False, True]
    # shares of 3.0, 2.5, 2.0, 1.0, -1.0: 0.469, 0.285, 0.173, 0.063, 0.009
    kept = filter_logits(LOGITS, Sampling(temperature=1.0, top_p=0.5)).isfinite()
    assert kept.tolist() == [False, True, False, False, True]
    kept = filter_logits(LOGITS, Sampling(temperature=1.0, top_p=0.01)).isfinite()
    assert kept.tolist() == [False, True, False, False, False]


def test_a_seed_fixes_the_tokens_and_follows_the_distribution() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler(LOGITS) for _ in range(2000)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    shares = torch.softmax(LOGITS, -1)
    counts = torch.bincount(torch.tensor(draw(3)), minlength=5) / 2000
    torch.testing.assert_close(counts, shares, atol=0.04, rtol=0)


@pytest.mark.parametrize("values", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_bad_values(values: dict) -> None:
    with pytest.raises(ValueError, match=f"workload.{next(iter(values))}="):
        Sampling(**values)
