"""The accounts of `bench_waits` on rows made by hand: reads beside tokens, and cores."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from experiments import bench_waits

USUAL: dict[str, Any] = {
    "status": "ok",
    "weights": "q8",
    "memory_mb": None,
    "num_devices": 2,
    "num_tokens": 3,
    "threads_per_device": 1,
    "cores": 2,
    "repeat": 0,
    "system": "tpi",
    "system_collective": "star",
    "system_through": None,
    "streamed_bytes": 0.0,
    "limit_token_s": 0.005,
    "token_latency_p50_s": 0.01,
    "token_latency_s": 0.01,
}


def spans_of(point: str, cells: list[tuple[int, str, str, float, float, float]]) -> pd.DataFrame:
    """(rank, kind, key, end, CPU time, wait) in ms, four times: a warm-up and three tokens."""
    names = ["rank", "kind", "key", "end_ns", "cpu_ns", "core_wait_ns"]
    found = []
    for start in (-20.0, 0.0, 10.0, 20.0):
        for rank, kind, key, end, *times in cells:
            ns = [round(1e6 * value) for value in (start + end, *times)]
            found.append(dict(zip(names, (rank, kind, key, *ns), strict=True)))
    return pd.DataFrame(found).assign(point=point, start_ns=0)


def test_what_devices_do_with_the_cores() -> None:
    """Of 10 ms the master runs 3 and waits 2 for a core, a worker runs 4; products are 4."""
    runs = pd.DataFrame(
        [
            USUAL | {"point": "t"},
            USUAL | {"point": "p", "system": "products"},
            USUAL | {"point": "lost", "status": "device_lost", "num_tokens": None},
        ]
    )
    token = [
        (0, "compute", "attn", 5.0, 2.0, 0.0),
        (0, "sync", "recv", 8.0, 1.0, 2.0),
        (0, "sampling", "sample", 10.0, 0.0, 0.0),
        (1, "compute", "attn", 6.0, 4.0, 1.0),
    ]
    alone = [(0, "compute", "products", 4.0, 1.0, 0.0), (1, "compute", "products", 4.0, 3.0, 0.0)]
    rows = bench_waits.core_times(
        runs,
        pd.concat(
            [spans_of(name, own) for name, own in (("t", token), ("p", alone), ("lost", alone))]
        ),
    )
    (line,) = bench_waits.shared(rows).to_dict("records")
    assert line["products_cpu_s"] == pytest.approx(0.004)
    assert line["other_cpu_s"] == pytest.approx(0.002)
    assert line["messages_cpu_s"] == pytest.approx(0.001)
    assert line["rest_s"] == pytest.approx(0.013)  # of 2 times 10 ms
    assert line["busy_share"] == pytest.approx(0.35)
    assert line["core_wait_s"] == pytest.approx(0.003)
    assert line["master_core_wait_s"] == pytest.approx(0.002)
    assert "35%" in bench_waits.table(rows)
    assert bench_waits.draw(rows).axes


def test_a_token_beside_the_same_reads() -> None:
    """Of repeat 1 nothing was read alone: it has no share."""
    own = USUAL | {"memory_mb": 400.0, "num_devices": 1}
    reads = own | {"system": "reads"}
    runs = pd.DataFrame(
        [
            own | {"point": "t0", "token_latency_p50_s": 0.5, "streamed_bytes": 1e9},
            own | {"point": "t1", "token_latency_p50_s": 0.9, "streamed_bytes": 1e9, "repeat": 1},
            reads | {"point": "w", "system_through": "window", "token_latency_p50_s": 0.45},
            reads | {"point": "n", "system_through": "nothing", "token_latency_p50_s": 0.4},
        ]
    )
    spans = spans_of("t0", [(0, "sampling", "sample", 10.0, 0.0, 0.0)])
    rows = bench_waits.core_times(runs, spans)
    first, second = bench_waits.streamed(rows).to_dict("records")
    assert first["token_s"] == pytest.approx(0.5)
    assert first["window_s"] == pytest.approx(0.45)
    assert second["nothing_s"] != second["nothing_s"]
    text = bench_waits.table(rows)
    assert "80%" in text  # reads of a token
    assert "2.50" in text  # GB/s
    assert bench_waits.draw(rows).axes
