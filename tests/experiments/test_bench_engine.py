"""The table of `bench_engine` on rows made by hand: pairs, what is asked, and peers that are not
there."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiments import bench_engine
from experiments.bench_lines import Line, lines
from tpi_bench.app.sweeper import CONFIG_FOLDER, jobs_of_grids
from tpi_bench.report.rows import RunRow

OK = replace(
    RunRow.of(),
    status="ok",
    repeat=0,
    weights="float32",
    model="tinyllama_1.1b",
    num_devices=1,
    threads_per_device=2,
    prompt_tokens=32,
    hidden=2048,
    memory_bps=40e9,
    kernel="of a test",
)
PEERLESS = replace(OK, status="error", error="xllamacpp is not installed", system="llamacpp")


def ours(token_s: float, limit_s: float = math.nan, **changes: Any) -> RunRow:
    return replace(OK, system="tpi", token_latency_p50_s=token_s, limit_token_s=limit_s, **changes)


def peer(system: str, token_s: float = math.nan, **changes: Any) -> RunRow:
    return replace(OK, system=system, token_latency_p50_s=token_s, **changes)


def frame(*rows: RunRow) -> pd.DataFrame:
    return pd.DataFrame([row.cells() for row in rows])


def line_of(name: str, *rows: RunRow) -> Line:
    return next(line for line in lines(frame(*rows)) if line.name == name)


def test_ratios_are_those_of_pairs() -> None:
    """Both got slower in the second repeat; the third has no peer and counts for the limit only."""
    line = line_of(
        "fp32 decode",
        *(ours(s, 0.9, repeat=i) for i, s in enumerate((1.0, 2.0, 1.0))),
        *(peer("llamacpp", s, repeat=i) for i, s in enumerate((1.25, 2.0))),
    )
    assert line.ratio.tolist() == [0.8, 1.0]
    assert line.share.tolist() == [0.9, 0.45, 0.9]
    assert line.asked == ">= 85%, <= 1.00"
    assert line.is_met


@pytest.mark.parametrize(
    ("token_s", "limit_s", "peer_s", "is_met"),
    [
        (1.0, 0.86, 1.0, True),
        (1.0, 0.84, 1.0, False),
        (1.0, 0.86, 0.99, False),
        (1.0, 0.84, math.nan, False),  # one answer is enough to say no
        (1.0, 0.86, math.nan, None),
        (1.0, 0.0, 1.0, None),  # weights within the CPU's cache have no limit
    ],
)
def test_all_that_is_asked_must_be_so(
    token_s: float, limit_s: float, peer_s: float, is_met: bool | None
) -> None:
    line = line_of("fp32 decode", ours(token_s, limit_s), peer("llamacpp", peer_s))
    assert line.is_met is is_met


def test_a_peer_that_is_not_installed_leaves_its_cells_empty_and_says_why() -> None:
    rows = frame(ours(1.0, 0.9), PEERLESS)
    text = bench_engine.DRAWING.text(rows)
    assert "without llama.cpp F32: error: xllamacpp is not installed" in text
    (shown,) = [row.split() for row in text.split("\n") if row.startswith("fp32 decode")]
    assert shown[-1] == "-"
    assert "0 of 0 figures are as asked" in text


def test_nothing_of_ours_is_no_table() -> None:
    assert bench_engine.DRAWING.text(frame(PEERLESS)) == "no point succeeded"


def test_prefill_of_quantised_weights_stands_beside_fp32() -> None:
    rows = [
        ours(math.nan, prompt_tokens=128, weights=weights, ttft_s=ttft_s)
        for weights, ttft_s in (("float32", 2.0), ("q4", 1.5))
    ]
    theirs = peer("transformers", prompt_tokens=128, ttft_s=1.0)
    assert line_of("fp32 prefill 128", *rows, theirs).ratio.tolist() == [2.0]
    quantised = line_of("q4 prefill 128", *rows, theirs)
    assert (quantised.ratio.tolist(), quantised.peer_name) == ([1.5], "Transformers fp32")


@pytest.mark.parametrize(("memory_s", "most"), [(0.1, 0.55 + 0.04), (0.68, 0.8 + 0.04)])
def test_two_devices_may_take_what_memory_and_messages_do(memory_s: float, most: float) -> None:
    """20 round trips, of each of which an allreduce takes 2 ms; of memory 85 % is asked."""
    one = ours(1.0, threads_per_device=1)
    two = ours(
        0.6,
        threads_per_device=1,
        num_devices=2,
        limit_memory_s=memory_s,
        limit_network_s=0.02,
        link_round_trip_min_s=0.001,
    )
    alone = peer("allreduce", 0.002, num_devices=2, raw_round_trip_s=0.001)
    line = line_of("fp32 two devices", one, two, alone)
    assert line.most == pytest.approx(most)
    assert line.ratio.tolist() == [0.6]
    assert line_of("fp32 two devices", one, two).most == pytest.approx(most - 0.02)


def test_an_allreduce_stands_beside_a_plain_round_trip() -> None:
    row = peer("allreduce", 0.0014, num_devices=2, hidden=8192, raw_round_trip_s=0.001)
    line = line_of("allreduce 32 KB", ours(1.0), row)
    assert line.ratio.tolist() == [pytest.approx(1.4)]
    assert line.is_met


def test_the_account_of_a_token_is_whole() -> None:
    shares = {"compute_share": 0.9, "sync_share": 0.0, "sampling_share": 0.02}
    token = ours(1.0, model="smollm2_135m", unexplained_share=0.08, **shares)
    rows = frame(token, peer("products", 0.75, model="smollm2_135m"))
    found = bench_engine.account(rows).loc["fp32"]
    assert found.tolist() == pytest.approx([0.75, 0.15, 0.02, 0.0, 0.08])
    assert found.sum() == pytest.approx(1.0)
    (line,) = [line for line in lines(rows) if line.kind == "account"]
    assert line.is_met  # a quarter is not weights
    slower = frame(token, peer("products", 0.69, model="smollm2_135m"))
    assert not lines(slower)[-1].is_met


def test_one_model_can_stand_in_all_places() -> None:
    rows = [ours(1.0, model="mine"), peer("products", 0.9, model="mine")]
    assert {line.kind for line in lines(frame(*rows))} == {"decode", "account"}


def test_what_is_compared_runs_one_after_the_other() -> None:
    """In every repeat: a peer right behind the point that differs in the system alone."""
    sweeper = yaml.safe_load((CONFIG_FOLDER / "experiment" / "bench_engine.yaml").read_text())[
        "hydra"
    ]["sweeper"]
    jobs, left_out = jobs_of_grids(sweeper["params"], sweeper["grids"], [])
    assert not left_out
    alone = [[text for text in job if not text.startswith("system=")] for job in jobs]
    peers = ("llamacpp", "llamacpp_q4_0", "products")
    places = [i for i, job in enumerate(jobs) if {f"system={name}" for name in peers} & set(job)]
    num_repeats = len(sweeper["params"]["repeat"].split(","))
    assert len(places) == num_repeats * (3 + 2 + 5)
    for place in places:
        assert alone[place - 1] == alone[place]
        assert "system=tpi" in jobs[place - 1]
    repeats = [text for job in jobs for text in job if text.startswith("repeat=")]
    assert repeats == sorted(repeats)


def test_it_is_drawn_with_what_there_is(tmp_path: Path) -> None:
    for rows in (
        [ours(1.0, 0.9)],
        [ours(1.0, 0.9), peer("llamacpp", 1.1), peer("transformers", 2.0)],
    ):
        png, _ = bench_engine.DRAWING.save(frame(*rows), tmp_path)
        assert png.stat().st_size > 10_000
