"""A pass's last sum goes to the master alone: after a long prompt no port has it left to send."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpi_bench import run


@pytest.mark.parametrize("collective", ["star", "tree"])
def test_the_gap_after_a_prompt_is_as_the_others(collective: str, cache_dir: Path) -> None:
    """With the way back it would be longer by 48 messages of a token, 16 at a time."""
    row = run(
        "testbed=virtual",
        "testbed.num_devices=4",
        "model=debug",
        "system=tpi",
        f"system.collective={collective}",
        "network=switch",
        "network.bandwidth_mbps=2",
        "workload.prompt_tokens=16",
        "workload.num_new_tokens=5",
        "workload.warmup_tokens=0",
        f"cache_dir={cache_dir}",
    ).row
    assert row.token_latency_s == pytest.approx(row.token_latency_p50_s, rel=0.01)
    assert row.token_latency_s >= row.limit_token_s * (1 - 1e-9)
