"""Spans as Chrome trace events."""

from __future__ import annotations

import pandas as pd
import pytest

from tpi_bench.report.chrome_trace import chrome_trace

RUNS = pd.DataFrame([{"point": "p1234567890", "label": "TPI star", "variant": ""}])
SPANS = pd.DataFrame(
    [
        ("p1234567890", 0, "compute", "attention", 1_000_000, 3_000_000),
        ("p1234567890", 0, "read", "layer 1", 1_500_000, 4_000_000),
        ("p1234567890", 1, "sync", "recv 0", 2_000_000, 3_500_500),
    ],
    columns=["point", "rank", "kind", "key", "start_ns", "end_ns"],
)


def test_a_device_is_a_process_and_a_kind_a_track() -> None:
    events = chrome_trace(RUNS, SPANS)["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert [(e["name"], e["pid"], e["ts"], e["dur"]) for e in spans] == [
        ("attention", 0, 0.0, 2000.0),
        ("layer 1", 0, 500.0, 2500.0),
        ("recv 0", 1, 1000.0, 1500.5),
    ]
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert tracks == {(0, 0): "compute", (0, 1): "read", (1, 0): "sync"}
    assert all((e["pid"], e["tid"]) in tracks for e in spans)
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes == ["TPI star, device 0 (p1234567)", "TPI star, device 1 (p1234567)"]


def test_what_a_span_had_of_the_cores() -> None:
    counted = SPANS.assign(cpu_ns=[1_500_000, None, 300_000], core_wait_ns=[None, None, 200_000])
    events = chrome_trace(RUNS, counted)["traceEvents"]
    found = [event["args"] for event in events if event["ph"] == "X"]
    assert found == [{"cpu_ms": 1.5}, {}, {"cpu_ms": 0.3, "core_wait_ms": 0.2}]


def test_without_spans() -> None:
    with pytest.raises(ValueError, match=r"no spans were kept; .* testbed.trace=true"):
        chrome_trace(RUNS, SPANS[:0])
