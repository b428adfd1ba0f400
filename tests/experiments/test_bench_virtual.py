"""The table of `bench_virtual` on rows made by hand: what is asked, and whether it is so."""

from __future__ import annotations

import pandas as pd

from experiments import bench_virtual


def rows(num_points: int, gap_s: float, **cells: object) -> pd.DataFrame:
    """Points that a sweep began so many seconds after one another."""
    start = pd.Timestamp("2026-01-01", tz="UTC")
    usual = {
        "status": "ok",
        "token_latency_s": 1.0,
        "wall_s": 0.2,
        "num_events": 100_000,
        "system": "tpi",
        "label": "TPI star",
        "variant": "",
        "is_library": False,
        "topology": "paper",
        "model": "llama2_7b",
        "num_devices": 8,
    }
    started = [(start + pd.Timedelta(seconds=gap_s * i)).isoformat() for i in range(num_points)]
    return pd.DataFrame([usual | cells | {"started": text} for text in started])


def test_a_point_of_a_sweep_takes_what_lies_between_two_starts() -> None:
    """0.1 s apart, on several workers, though each takes 0.2; the last is all there is of it."""
    shown = bench_virtual.DRAWING.text(rows(41, 0.1))
    assert "2.00" in shown.split("\n")[1]  # us an event
    verdict = "llama2_7b, seconds a point of a sweep of 41: 0.102 (at most 0.12: yes)"
    assert shown.split("\n")[-1] == verdict
    assert bench_virtual.DRAWING.text(rows(41, 0.2)).endswith("(at most 0.12: NO)")


def test_few_points_are_no_sweep() -> None:
    assert "at most" not in bench_virtual.DRAWING.text(rows(5, 0.1))


def test_many_devices() -> None:
    many = rows(1, 1, num_devices=256, wall_s=20.0, num_events=10_000_000, model="llama2_70b")
    assert bench_virtual.DRAWING.text(many).split("\n")[-2:] == [
        "256 devices, seconds of a run: 20 (at most 15: NO)",
        "256 devices, microseconds an event: 2 (at most 2.5: yes)",
    ]
