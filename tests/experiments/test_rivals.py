"""What fig_prima, fig_prefill and fig_keep say of rows whose answer is known."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import fig_keep, fig_prefill, fig_prima

HOME = "prima_mac_m1, prima_laptop, prima_desktop, prima_phone"


def runs_of(*rows: dict[str, Any], **shared: Any) -> pd.DataFrame:
    usual = {"status": "ok", "variant": "", "is_library": False, "weights": "q4", "ttft_s": 1.0}
    return pd.DataFrame([usual | shared | row for row in rows])


def ring(rounds: str, token_s: float, **extra: Any) -> dict[str, Any]:
    return {
        "system": "prima",
        "label": "prima",
        "system_rounds": rounds,
        "system_planner": "memory",
        "system_objective": "paper",
        "system_prefetch": "True",
        "token_latency_s": token_s,
    } | extra


def test_rounds_are_held_against_one() -> None:
    rows = runs_of(
        ring("1", 8.0),
        ring("2", 4.0),
        ring("4", 5.0),
        ring("1", 8.0, system_prefetch="False"),
        ring("4", 9.0, system_prefetch="False"),
        device="4 x prima_container",
        model="big",
        memory_mb=8600.0,
        disk_bps=2e9,
        link_latency_ms=0.1,
    )
    text = fig_prima.DRAWING.table(fig_prima.DRAWING.rows(rows))
    where = "8.6 GB, 2 GB/s, 0.1 ms a hop"
    assert f"{where}, loaded ahead: rounds of the fastest: 2, taking 0.50 of one" in text
    assert f"{where}, when needed: rounds of the fastest: 1, taking 1.00 of one" in text


def test_planners_are_held_against_haldas_choice_and_sizes_against_what_is_published() -> None:
    rows = runs_of(
        ring("auto", 2.0, system_planner="halda"),
        ring("auto", 1.348, system_planner="halda", system_objective="overlap"),
        ring("4", 1.0, system_planner="halda", system_objective="overlap"),
        ring("2", 3.0),
        {"system": "tpi_direct", "label": "TPI direct", "token_latency_s": 5.0},
        device=HOME,
        model="llama3.1_70b",
        memory_mb=float("nan"),
        disk_bps=1e9,
        link_latency_ms=2.5,
    )
    text = fig_prima.DRAWING.table(fig_prima.DRAWING.rows(rows))
    assert "Halda, hidden loads left out at its best (4 rounds): 1.00 s, 0.50 of Halda's" in text
    assert "by memory (exo) at its best (2 rounds): 3.00 s, 1.50 of Halda's choice" in text
    assert "prima, Halda: 2000 ms a token, first 1000; published 674 and 1793 (ratio 3.0)" in text
    assert "left out: 1348 ms a token, first 1000; published 674 and 1793 (ratio 2.0)" in text
    assert "TPI direct: 5000 ms a token, first 1000\n" in f"{text}\n"


def prompt(label: str, positions: int, ttft_s: float, **extra: Any) -> dict[str, Any]:
    return {"label": label, "prompt_tokens": positions, "ttft_s": ttft_s} | extra


def test_who_has_a_prompt_first_and_in_how_many_chunks() -> None:
    chunked = {"system_lengths": "equal"}
    rows = runs_of(
        prompt("TPI", 32, 1.0),
        prompt("TPI", 512, 9.0),
        prompt("Jupiter", 32, 2.0, system_chunks="auto"),
        prompt("Jupiter", 512, 4.0, system_chunks="auto"),
        *(
            prompt("Jupiter", 512, ttft_s, system_chunks=chunks, **chunked)
            for chunks, ttft_s in (("1", 8.0), ("4", 5.0), ("32", 6.0))
        ),
        bandwidth_mbps=100.0,
        link_latency_ms=1.0,
        token_latency_s=1.0,
    )
    text = fig_prefill.DRAWING.table(fig_prefill.DRAWING.rows(rows))
    assert "TTFT in s, 1 ms a hop, 100 Mbit/s" in text
    assert "fastest by positions: 32 TPI, 512 Jupiter" in text
    assert "512 positions at 1 ms a hop: 4 chunks (equal) 5 s, one 8 s" in text


def test_how_far_each_is_from_the_optimum() -> None:
    """The mapped files' limit is the optimum: what they cannot hold, read once."""

    def way(system: str, variant: str, memory: float, token_s: float, limit_s: float):
        return {
            "system": system,
            "label": "TPI star",
            "variant": variant,
            "memory_mb": memory,
            "token_latency_s": token_s,
            "limit_token_s": limit_s,
        }

    rows = runs_of(
        way("tpi", "window auto", 2000.0, 2.2, 2.1),
        way("mmap", "", 2000.0, 4.0, 2.0),
        way("tpi", "window auto", 8000.0, 0.5, 0.4),
        way("mmap", "", 8000.0, 0.5, 0.4),
        device="board",
    )
    found = fig_keep.DRAWING.rows(rows)
    assert found.over.round(2).tolist() == [1.1, 2.0, 1.25, 1.25]
    assert found.is_short.tolist() == [True, True, False, False]
    text = fig_keep.DRAWING.table(found)
    assert "TPI star, same of every layer: 1.10 to 1.10 times where memory is short" in text
    assert "mmap (the kernel's choice): 2.00 to 2.00 times where" in text
