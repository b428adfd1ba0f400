"""The fit of the disk rate, on rows whose answer is known."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.tab_overview import fit

RATES = (1.0, 2.0, 4.0)


def rows(papers: dict[str, float], work: float = 8.0) -> pd.DataFrame:
    """A model takes `work` over the disk rate; the paper's as given."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "scheduler": "on",
                "status": "ok",
                "prompt_tokens": 8,
                "disk_gb_per_s": rate,
                "token_latency_s": work / rate,
                "paper_token_s": paper,
            }
            for model, paper in papers.items()
            for rate in RATES
        ]
    )


def test_one_rate_that_serves_all() -> None:
    rate, found = fit(rows({"a": 4.0, "b": 4.0}))
    assert rate == pytest.approx(2.0, rel=0.01)
    assert found.ratio.tolist() == pytest.approx([1.0, 1.0], rel=0.01)
    assert found.own_rate.tolist() == pytest.approx([2.0, 2.0], rel=0.01)


def test_between_rows_that_disagree() -> None:
    """The logarithm's middle of 8 / 1.25 and 8 / 3.2 GB/s; each alone needs its own."""
    rate, found = fit(rows({"a": 6.4, "b": 2.5}))
    assert rate == pytest.approx(2.0, rel=0.01)
    assert found.ratio.tolist() == pytest.approx([4 / 6.4, 4 / 2.5], rel=0.01)
    assert found.own_rate.tolist() == pytest.approx([1.25, 3.2], rel=0.01)


def test_what_no_swept_rate_gives() -> None:
    _, found = fit(rows({"a": 1.0, "b": 20.0}))
    assert found.own_rate.isna().all()
    assert fit(rows({"a": float("nan")}))[1].empty
