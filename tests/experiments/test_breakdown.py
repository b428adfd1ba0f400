"""What fig_breakdown, fig_standalone, fig_roofline and tab_limits compute, on rows made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments import fig_breakdown, fig_roofline, fig_standalone, tab_limits
from experiments.breakdown import parts_of, with_parts
from experiments.fig_token import last_tokens
from tests.helpers.command_line import ROOT

USUAL: dict[str, Any] = {
    "point": "p",
    "status": "ok",
    "system": "tpi",
    "label": "TPI star",
    "variant": "",
    "is_library": False,
    "model": "llama2_7b",
    "weights": "float32",
    "num_devices": 8,
    "topology": "paper",
    "clock": "virtual",
    "repeat": 0,
    "link_latency_ms": 1.0,
    "bandwidth_mbps": 300.0,
    "memory_bps": 25e9,
    "limit_memory_s": 0.5,
    "limit_disk_s": 0.0,
    "limit_network_s": 0.1,
    "limit_token_s": 0.6,
    "ttft_s": 2.0,
    "ledger_bytes": 1e9,
    "peak_anon_bytes": float("nan"),
    "system_window": "off",
    "devices_share_cores": False,
    "beats_limit": False,
}


def row(token_s: float, **cells: Any) -> dict[str, Any]:
    return USUAL | {"token_latency_s": token_s} | cells


# 20 ms; the master computes 0 to 4 and 16 to 20, the other 6 to 14 while its disk reads; it waits
# for its disk until 8. From 4 to 6 and 14 to 16 messages are on their way.
SPANS = [
    (0, "compute", "embed", 0, 4),
    (0, "sync", "recv", 4, 16),
    (0, "sampling", "sample", 16, 19),
    (0, "compute", "embed", 20, 24),
    (1, "sync", "recv", 0, 6),
    (1, "load_wait", "ffn_0", 6, 8),
    (1, "read", "ffn_0", 0, 8),
    (1, "compute", "ffn", 8, 14),
    (1, "sync", "send", 14, 24),
]


def spans() -> pd.DataFrame:
    found = pd.DataFrame(
        [("p", *span) for span in SPANS],
        columns=["point", "rank", "kind", "key", "start_ns", "end_ns"],
    )
    found[["start_ns", "end_ns"]] *= 1_000_000
    return found


def test_the_parts_of_a_token() -> None:
    """Of 20 ms: 4 on the links; of the rest each device works, loads, or waits for the other."""
    runs = with_parts(pd.DataFrame([row(0.02)]), spans())
    (token,) = last_tokens(pd.DataFrame([row(0.02)]), spans()).token
    parts = (parts_of(token) * 20).round(6)
    assert list(parts.links) == [4, 4]
    assert list(parts.compute) == [7, 6]
    assert list(parts.loads) == [0, 2]
    assert list(parts.waits) == [8, 7]
    assert list(parts.other) == [1, 1]  # the master between its spans, nobody else at work
    assert list(parts.sum(axis=1)) == [20, 20]
    assert runs.links.tolist() == [0.2]


def test_a_breakdown_beside_the_papers() -> None:
    runs = pd.DataFrame(
        [
            row(0.02, model="llama3.1_8b"),
            row(0.02, model="llama3.1_8b", point="without", ledger_bytes=8e9),
            row(0.02, model="smollm2_135m", clock="wall", peak_anon_bytes=3e8),
        ]
    )
    text = fig_breakdown.DRAWING.text(with_parts(runs, spans()))
    lines = text.split("\n")
    assert lines[1].split()[-8:] == ["20", "20%", "32%", "5%", "38%", "5%", "70%", "1.00"]
    assert "-" in lines[2].split()  # what was measured is not the paper's case
    assert "the paper's, TPI star: 8 9.1" in text  # 8.5 GiB of its table 2


def test_the_best_together_beside_the_best_alone() -> None:
    runs = pd.DataFrame(
        [
            row(10.0, num_devices=1, system="mmap", label="mmap"),
            row(8.0, num_devices=1, variant="window auto", system_window="auto"),
            row(0.93),
            row(3.5, variant="window 2", system_window="2"),
            row(float("nan"), label="Galaxy", system="galaxy", status="oom"),
        ]
    )
    text = fig_standalone.DRAWING.text(runs)
    assert text.endswith(
        "virtual fp32, Llama 2-7B: fastest together TPI star 930 ms, alone TPI star window auto, "
        "alone 8 s (ratio 0.12)"
    )
    lines = {line.split("7B")[1].split("  ")[0].strip(): line for line in text.split("\n")[1:-1]}
    assert text.count("1.2 s") == 1  # its table 1, without a window
    assert text.count("2.6 s") == 1  # and with one
    assert any("Galaxy" in line and "oom" in line for line in lines.values())
    rows = fig_standalone.DRAWING.rows(runs)
    assert rows[rows.system == "mmap"].held_gb.isna().all()  # no ledger knows mapped files


def test_where_more_devices_stop_helping() -> None:
    """One device is one point and begins the lines of every network."""
    cells = [(2, 2.2, 0.2, "TPI direct"), (4, 1.6, 0.6, "TPI direct"), (8, 1.9, 1.4, "TPI direct")]
    runs = pd.DataFrame(
        [row(4.0, num_devices=1)]
        + [
            row(time, num_devices=count, label=label, limit_network_s=links, limit_token_s=1.5)
            for count, time, links, label in cells
        ]
        + [row(9.0, num_devices=2, label="TPI direct", link_latency_ms=5.0)]
        + [row(t, clock="wall", num_devices=1, repeat=n) for n, t in enumerate((0.04, 0.05, 0.04))]
        + [
            row(t, clock="wall", num_devices=2, repeat=n, label="TPI direct")
            for n, t in enumerate((0.02, 0.03, 0.02))
        ]
    )
    text = fig_roofline.DRAWING.text(runs).split("\n")
    far = next(line for line in text if "5 ms a hop" in line)
    assert "9000 (2)" in far
    assert far.split()[-3] == "1"
    near = next(line for line in text if "1 ms a hop, 300" in line)
    assert "1600 (4)" in near
    assert "4 TPI direct" in near
    assert near.split()[-2:] == ["2.50", "40%"]
    assert text[-2] == "measured, Llama 2-7B in fp32: one device 40.0 ms"
    assert text[-1].startswith("  2 devices, TPI direct, 1 ms a hop: 20.0 ms, 0.50 [")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one results folder that tab_limits knows, and one that it does not."""
    runs = pd.DataFrame(
        [
            row(1.0, clock="wall", num_devices=1),
            row(0.8, clock="wall", num_devices=1, weights="q4"),
            row(1.2),
            row(2.0, limit_disk_s=1.5, limit_token_s=1.5),
            row(3.0, devices_share_cores=True, clock="wall"),
            row(1.0, system="products", label="products alone"),
            row(1.0, label="pipeline", system="pipeline", limit_network_s=0.7, limit_token_s=0.8),
        ]
    )
    for name in ("fig_rivals", "fig_fidelity"):
        (tmp_path / name).mkdir()
        runs.to_parquet(tmp_path / name / "runs.parquet")
    return tmp_path


def test_shares_of_limits(results: Path) -> None:
    rows = tab_limits.DRAWING.rows(tab_limits.stored(results))
    assert len(rows) == 5  # without what shares cores or makes no tokens
    assert rows[rows.label == "pipeline"].limited_by.tolist() == ["links"]
    text = tab_limits.DRAWING.text(tab_limits.stored(results))
    star = next(line for line in text.split("\n") if line.strip().startswith("TPI star"))
    assert "68% [61%, 74%] (2)" in star  # 0.6 of a second and of 0.8
    assert "50% (1)" in star
    assert "75% (1)" in star
    assert text.endswith("rows of fig_rivals")


def test_what_is_typed_leaves_table_and_figure(results: Path) -> None:
    command = [sys.executable, "-m", "experiments.tab_limits", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    made = results / "tab_limits"
    assert {path.name for path in made.iterdir()} == {
        "tab_limits.png",
        "tab_limits.pdf",
        "tab_limits.txt",
    }
    assert (made / "tab_limits.txt").read_text() in done.stdout


def test_a_folder_without_results_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tab_limits", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        tab_limits.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path} holds none of bench_engine, ")
    assert told.endswith("; give results\n")
    assert told.count("\n") == 1
