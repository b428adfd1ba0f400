"""What fig_precision says of its rows: who is fastest, what latency takes, what does not fit."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.fig_precision import DRAWING, PAPER_MODEL


def row(link_ms: float, token_s: float, **changes: Any) -> dict[str, Any]:
    """TPI direct at 4 bits, as memory allows; what it takes at least are 0.2 s, and the links."""
    network_s = 0.6 * link_ms
    cells: dict[str, Any] = {
        "status": "ok",
        "model": PAPER_MODEL,
        "device": "8 x a",
        "topology": "paper",
        "bandwidth_mbps": 300.0,
        "weights": "q4",
        "label": "TPI direct",
        "system_window": "auto",
        "system_wire": "auto",
        "link_latency_ms": link_ms,
        "token_latency_s": token_s,
        "limit_token_s": 0.2 + network_s,
        "limit_memory_s": 0.2,
        "limit_network_s": network_s,
        "limit_disk_s": 0.1,
        "ledger_bytes": 5e9,
    }
    return cells | changes


OOM = {"status": "oom", "token_latency_s": float("nan"), "ledger_bytes": float("nan")}
ROWS = pd.DataFrame(
    [
        row(0, 0.6),
        row(1, 1.2),
        row(1, 0.9, system_wire="q8"),
        row(0, 0.45, system_wire="q8"),
        row(1, 4.0, system_window="2"),
        row(1, 1.2, system_window="False"),  # as YAML reads off
        row(1, 1.9, label="pipeline"),
        row(1, 22.0, weights="float32"),
        row(1, 30.0, weights="float32", system_window="2"),
        row(1, 0, weights="float32", system_window="off", **OOM),
    ]
)


def test_the_findings_are_those_of_the_rows() -> None:
    lines = DRAWING.text(ROWS).splitlines()
    found = lines[lines.index(next(line for line in lines if line.startswith("q4 at"))) :]
    assert found[:4] == [
        "q4 at 1 ms a hop: 0.90 s a token (TPI direct, planned, q8 on the wire; limit 0.80 s, "
        "mostly links); the paper takes 29.0 times as long, 26.1 s in fp32",
        "  50% of it is link latency: 0.45 s without",
        "  fastest: at 0 ms 0.45 s (TPI direct, planned, q8 on the wire); at 1 ms 0.90 s "
        "(TPI direct, planned, q8 on the wire)",
        "  TPI direct: planned 1.20 s, window 2 4.00 s, all held 1.20 s",
    ]
    assert found[4].startswith("fp32 at 1 ms a hop: 22.00 s a token (TPI direct, planned; ")
    assert found[-1] == "  TPI direct: planned 22.00 s, window 2 30.00 s, all held oom"


def test_other_models_are_not_held_against_the_papers() -> None:
    assert "the paper takes" not in DRAWING.text(ROWS.assign(model="debug"))


def test_nothing_is_drawn_when_nothing_fits() -> None:
    assert DRAWING.text(ROWS.assign(status="oom")) == "no point succeeded"
