"""The table of `fig_rivals` on rows made by hand: pairs with the yardstick, what is published."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.fig_rivals import DRAWING

USUAL: dict[str, Any] = {
    "status": "ok",
    "error": "",
    "system": "tpi",
    "label": "TPI direct",
    "variant": "",
    "is_library": False,
    "model": "smollm2_135m",
    "weights": "float32",
    "num_devices": 2,
    "clock": "wall",
    "devices_share_cores": False,
    "memory_mb": float("nan"),
    "link_latency_ms": 0.5,
    "ttft_s": 0.1,
    "limit_token_s": 0.02,
    "repeat": 0,
}


def row(token_s: float, **cells: Any) -> dict[str, Any]:
    return USUAL | {"token_latency_s": token_s} | cells


def lines(*rows: dict[str, Any]) -> list[str]:
    return DRAWING.text(pd.DataFrame(rows)).split("\n")


def test_each_beside_direct_repeat_by_repeat() -> None:
    """Both drift, their ratio does not."""
    rpc = {"system": "llamacpp_rpc", "label": "llama.cpp RPC", "is_library": True}
    drifting = [(0.040, 0.060), (0.060, 0.090), (0.050, 0.075)]
    rows = [row(ours, repeat=n) for n, (ours, _) in enumerate(drifting)]
    rows += [row(theirs, repeat=n, **rpc) for n, (_, theirs) in enumerate(drifting)]
    _, ours, theirs = lines(*rows)
    assert ours.split()[-2:] == ["-", "-"]
    assert "1.50 [1.50, 1.50]" in theirs
    assert " yes " in theirs


def test_a_published_figure_stands_beside_the_same_devices() -> None:
    pi = {"clock": "virtual", "model": "llama3.1_8b", "weights": "q4", "num_devices": 4}
    _, ours, theirs = lines(row(0.2, **pi), row(0.3, system="dllama", label="dllama", **pi))
    assert ours.endswith("-")
    assert theirs.split()[-1] == "245"  # 4.08 tokens a second


def test_what_failed_is_told() -> None:
    failed = row(float("nan"), status="oom", error="rank 1 needs 300 MB; what fits: less")
    failed |= {"label": "llama.cpp RPC", "memory_mb": 380.0}
    told = lines(row(0.1, memory_mb=380.0), failed)[-1]
    assert told.endswith("380 MB each: llama.cpp RPC is oom: rank 1 needs 300 MB")
