"""The accounts of `bench_profile` on rows made by hand: matrices, rows of a prompt, devices."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from experiments import bench_profile

USUAL: dict[str, Any] = {
    "status": "ok",
    "model": "tinyllama_1.1b",
    "weights": "float32",
    "num_devices": 1,
    "threads_per_device": 1,
    "system_rows": None,
    "system_by_matrix": None,
    "repeat": 0,
    "memory_bps": 1e9,
    "limit_token_s": 0.05,
    "compute_share": 0.8,
    "sync_share": 0.1,
    "traced": True,
}


def point(name: str, token_s: float, **cells: Any) -> dict[str, Any]:
    times = {"token_latency_s": token_s, "token_latency_p50_s": token_s}
    return USUAL | {"point": name} | times | cells


def spans(times_ms: dict[str, list[float]]) -> pd.DataFrame:
    """Of point "m", one after the other."""
    cells, now = [], 0
    for key, lengths in times_ms.items():
        for length in lengths:
            end = now + round(length * 1e6)
            span = {"point": "m", "kind": "compute", "key": key, "start_ns": now, "end_ns": end}
            cells.append(span)
            now = end
    return pd.DataFrame(cells)


def test_each_matrix_beside_the_bandwidth_and_the_token() -> None:
    """A head of 4 MB in 5 ms and two matrices of 0.4 MB in 1 ms each, of a token of 10 ms."""
    runs = pd.DataFrame(
        [
            point("m", 0.007, system="products", system_by_matrix="True", system_rows="1"),
            point("t", 0.010, system="tpi"),
            point("o", 0.001, system="tpi", model="another"),
        ]
    )
    found = spans({"1000x1000": [5.0, 5.0, 9.0], "100x1000": [1.0] * 6})
    found = pd.concat([found, found.head(1).assign(point="t")])
    (line,) = bench_profile.by_matrix(bench_profile.shape_times(runs, found)).to_dict("records")
    assert line["1000x1000"] == "0.8"
    assert line["100x1000"] == "0.4"
    assert line["of probed"].startswith("69%")  # 4.8 MB in 7 ms at 1 GB/s
    assert line["not products"].startswith("30%")


def test_what_a_matrix_costs_once_and_what_a_row_costs() -> None:
    """fp32: 10 ms and 1 ms a row; q8 50 ms more once."""
    runs = pd.DataFrame(
        [
            point(f"{w}{n}", extra + n * 1e-3, system="products", weights=w, system_rows=n)
            for w, extra in (("float32", 0.01), ("q8", 0.06))
            for n in (32, 128, 512)
        ]
    )
    wide, narrow = bench_profile.by_rows(runs).to_dict("records")
    assert (wide["once ms"], wide["a row ms"]) == ("10", "1.00")
    assert (narrow["once ms"], narrow["a row ms"]) == ("60", "1.00")
    assert narrow["32 of fp32"].startswith("2.19")


def test_what_quantised_weights_take_more_is_taken_apart() -> None:
    """Of 64 ms that q8 takes more than fp32's 100, tiles are 4 and widening 50."""
    times = {
        ("float32", "product"): 0.100,
        ("float32", "in_tiles"): 0.104,
        ("float32", "widening"): 0.0,
        ("q8", "product"): 0.164,
        ("q8", "in_tiles"): 0.164,
        ("q8", "widening"): 0.050,
    }
    runs = pd.DataFrame(
        [
            point(f"{w}{p}", time, system="products", weights=w, system_rows=32, system_part=p)
            for (w, p), time in times.items()
        ]
    )
    (line,) = bench_profile.taken_apart(runs).to_dict("records")
    shown = [line[f"{name} ms"].split()[0] for name in ("more", "by tiles", "by widening", "left")]
    assert shown == ["64", "4", "50", "10"]
    assert line["by widening of fp32"].startswith("50%")
    assert len(bench_profile.by_rows(runs)) == 2  # of the products alone


def test_devices_beside_one() -> None:
    runs = pd.DataFrame(
        [
            point("p1", 0.040, system="products", system_rows=1),
            point("p2", 0.024, system="products", system_rows=1, num_devices=2),
            point("t1", 0.050, system="tpi"),
            point("t2", 0.035, system="tpi", num_devices=2),
            point("u2", 0.033, system="tpi", num_devices=2, traced=False),
        ]
    ).assign(shape=None)
    lines = bench_profile.by_devices(runs).to_dict("records")
    assert [line["devices"] for line in lines] == ["1", "2"]
    assert lines[1]["of one device's"].startswith("0.60")
    assert lines[1]["of its token"].startswith("0.70")
    assert [line["without spans ms"] for line in lines] == ["-", "33 [33, 33]"]


def test_without_spans_it_says_so(tmp_path: Any) -> None:
    pd.DataFrame([point("t", 0.01, system="tpi")]).to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(ValueError, match=r"holds no spans.*testbed.trace=true"):
        bench_profile.DRAWING.stored(tmp_path)
