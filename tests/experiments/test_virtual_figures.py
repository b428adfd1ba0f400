"""What fig_overlap, fig_window, fig_lan and fig_token compute of rows, on rows made by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from experiments import fig_lan, fig_overlap, fig_token, fig_window

USUAL: dict[str, Any] = {
    "status": "ok",
    "system": "tpi",
    "label": "TPI star",
    "variant": "",
    "is_library": False,
    "model": "llama2_7b",
    "weights": "float32",
    "num_devices": 4,
    "topology": "switch",
    "clock": "virtual",
    "link_latency_ms": 1.0,
    "bandwidth_mbps": 1000.0,
    "memory_bps": 25.6e9,
    "disk_bps": 1e9,
    "limit_disk_s": 0.0,
    "streamed_bytes": math.nan,
    "limit_token_s": 1.0,
    "ledger_bytes": 1e9,
    "system_wire": "auto",
    "system_window": "off",
    "system_collective": "star",
}


def row(token_s: float, **cells: Any) -> dict[str, Any]:
    return USUAL | {"token_latency_s": token_s, "token_latency_p50_s": token_s} | cells


def test_the_disk_that_hides_what_streams() -> None:
    """4 GB of reading hide behind 0.5 s of the rest with a disk of 8; a limit may count less."""
    runs = pd.DataFrame(
        [
            row(0.5),
            row(4.0, variant="window 2", limit_disk_s=3.5, streamed_bytes=4e9),
            row(0.51, variant="window 2", limit_disk_s=0.4, disk_bps=10e9),  # mapped: not planned
        ]
    )
    rows = fig_overlap.DRAWING.rows(runs)
    streamed = rows[rows.is_streamed]
    assert list(streamed.slower) == [8.0, 1.02]
    assert list(streamed.needed_bps) == [8e9, 8e9]
    text = fig_overlap.DRAWING.text(runs).split("\n")[1].split()
    assert text[:5] == ["25.6", "1", "0.5", "8", "10"]


def test_nothing_to_hold_a_window_against() -> None:
    runs = pd.DataFrame([row(4.0, limit_disk_s=4.0)])
    assert fig_overlap.DRAWING.text(runs).endswith("in memory to hold it against")


def test_a_window_beside_the_same_memory_planned() -> None:
    """3 GB: half-way between plans of 2 GB, 8 s, and 4 GB, 4 s."""
    runs = pd.DataFrame(
        [
            row(9.0, system_window="16", ledger_bytes=3e9),
            row(8.0, system_window="auto", ledger_bytes=2e9),
            row(4.0, system_window="auto", ledger_bytes=4e9),
        ]
    )
    line = fig_window.table(runs).split("\n")[1].split()
    assert line[-2:] == ["6", "0.67"]


@pytest.mark.parametrize("wire", ["auto", "q8"])
def test_the_fastest_allreduce(wire: str) -> None:
    variant = "wire q8" if wire == "q8" else ""
    runs = pd.DataFrame(
        [
            row(2.0, variant=variant, system_wire=wire),
            row(
                9.0,  # its first gap is long
                token_latency_p50_s=1.5,
                label="TPI direct",
                variant=variant,
                system_wire=wire,
                system_collective="direct",
            ),
            row(1.0, label="pipeline", system="pipeline"),
            row(0.7, label="pipeline", system="pipeline", num_devices=1),
        ]
    )
    _, line, alone = fig_lan.DRAWING.text(runs).split("\n")
    assert alone == "one device: 700 ms"
    assert line.split()[-3:] == ["TPI", "direct", "1000"]
    assert " 4 " in line  # milliseconds of a round trip of 4 hops


def test_the_last_token_of_spans() -> None:
    """From the second embedding to the third; what reaches over an end is cut there."""
    spans = pd.DataFrame(
        [
            ("p", 0, "compute", "embed", 0, 1),
            ("p", 0, "compute", "embed", 10, 11),
            ("p", 1, "read", "layer", 5, 12),
            ("p", 1, "read", "layer", 11, 14),
            ("p", 0, "sync", "recv", 11, 20),
            ("p", 0, "compute", "embed", 20, 21),
        ],
        columns=["point", "rank", "kind", "key", "start_ns", "end_ns"],
    )
    spans[["start_ns", "end_ns"]] *= 1_000_000
    runs = pd.DataFrame([row(0.01) | {"point": "p"}, row(0.01) | {"point": "without"}])
    rows = fig_token.DRAWING.rows(fig_token.last_tokens(runs, spans))
    assert len(rows) == 1
    (line,) = fig_token._lines(rows)
    assert line["token ms"] == "10"
    assert line["computes"] == "10%, 0%"
    assert line["sends, receives, waits for others"] == "90%, 0%"
    assert line["disk reads"] == "0%, 40%"  # 0 to 4 of 10, counted once
