"""Which cases of `fig_fidelity` are believed."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

import pandas as pd
import pytest

from experiments.fig_fidelity import BOUND, TIMES, _drifted, _unsteady, cases, table
from tests.helpers.command_line import ROOT
from tpi_bench.report.results import load

SLOW, QUIET, IN_MEMORY = "slow disk", "quiet", "in memory"


def wall(case: str, *disk_bps: float, limit_disk_s: float = 0.1) -> list[dict]:
    return [
        {
            "case": case,
            "disk_bps_start": bps,
            "disk_bps_end": 1.1 * bps,
            "limit_disk_s": limit_disk_s,
            "memory_mb": nan,
        }
        for bps in disk_bps
    ]


@pytest.mark.parametrize(
    ("beside", "drifted"),
    [
        ((nan, nan, nan), {SLOW}),  # rows of before: against the calibration
        ((2.0, 3.0, 2.0), {QUIET}),  # against what was probed beside the predictions
    ],
)
def test_a_disk_that_gave_something_else_is_marked(
    beside: tuple[float, float, float], drifted: set[str]
) -> None:
    """The median of the repeats counts: one of them that was slow does not."""
    runs = pd.DataFrame(
        [
            *wall(SLOW, 2.0, 2.1, 1.9),
            *wall(QUIET, 3.0, 2.9, 1.0),
            *wall(IN_MEMORY, 1.0, 1.0, 1.0, limit_disk_s=0.0),
        ]
    )
    cases = (SLOW, IN_MEMORY, QUIET)
    predicted = pd.DataFrame(
        {"case": case, "disk_bps": 3.0, "disk_bps_start": bps}
        for case, bps in zip(cases, beside, strict=True)
    )
    for rows in (predicted, predicted.drop(columns="disk_bps_start")):
        found = _drifted(runs, rows.groupby("case"))
        assert set(found[found].index) == (drifted if rows is predicted else {SLOW})


@pytest.mark.parametrize(
    ("times_ms", "is_steady"),
    [((10.0, 10.4, 9.7, 10.2, 14.0), True), ((10.0, 11.5, 11.4, 8.1, 8.2), False)],
)
def test_a_case_whose_repeats_disagree_is_marked(
    times_ms: tuple[float, ...], is_steady: bool
) -> None:
    """One of five that is off does not count; it is told of both clocks' rows, in the table too."""
    runs = pd.DataFrame(
        [
            *(_run("wall", "real", ms / 1e3, n) for n, ms in enumerate(times_ms)),
            *(_run("wall", "real", 0.01, n, num_devices=2) for n in range(5)),
            *(_run("virtual", "modelled", 0.01, 0, num_devices=n) for n in (1, 2)),
        ]
    )
    rows = cases(runs)
    (spread,) = rows[(rows.time == "token_latency_s") & rows.case.str.contains("1 dev")].spread
    assert bool(spread <= 0.10) is is_steady
    text = table(rows)
    assert ("without the unsteady" in text) is not is_steady
    assert ("1 dev., fp32, prompt 8 ~" in " ".join(text.split())) is not is_steady


def test_a_prediction_is_held_against_the_run_beside_it() -> None:
    """A host that slows down, and predictions that follow it, of which the last was not made."""
    times_s = (0.010, 0.020, 0.040)
    runs = pd.DataFrame(
        [
            *(_run("wall", "real", s, n) for n, s in enumerate(times_s)),
            *(
                _run("virtual", "modelled", 1.1 * s, n)
                | {"token_latency_low_s": 0.9 * s, "token_latency_high_s": 1.2 * s}
                for n, s in enumerate(times_s[:2])
            ),
        ]
    )
    (row,) = cases(runs).query("time == 'token_latency_s'").itertuples()
    assert (row.error, row.interval_low, row.interval_high) == pytest.approx((0.1, 0.9, 1.2))
    assert (row.wall_ms, row.inside) == (pytest.approx(20), 1)


def _run(clock: str, cost: str, token_latency_s: float, repeat: int, num_devices: int = 1) -> dict:
    return {
        "repeat": repeat,
        "status": "ok",
        "label": "TPI star",
        "variant": "",
        "is_library": False,
        "clock": clock,
        "cost": cost,
        "num_devices": num_devices,
        "link_latency_ms": 0.0,
        "bandwidth_mbps": 0.0,
        "memory_mb": nan,
        "weights": "float32",
        "prompt_tokens": 8.0,
        "token_latency_s": token_latency_s,
        "ttft_s": 0.05,
        "busy_cores_start": 0.0,
        "cores": 2,
        "limit_disk_s": 0.0,
        "disk_bps": 3e9,
    }


def test_the_table_of_the_results_is_that_of_their_rows() -> None:
    rows = cases(load(ROOT / "results" / "fig_fidelity").runs)
    written = (ROOT / "results" / "README.md").read_text().splitlines()
    assert [line for line in _lines_of(rows) if line not in written] == []


def _lines_of(rows: pd.DataFrame) -> Iterator[str]:
    counted = rows[~rows.disturbed]
    for (time, cost), each in counted.groupby(["time", "cost"], sort=False):
        yield _line_of(f"{TIMES[str(time)]}, {cost} cost", each)
        steady = each[~_unsteady(each)]
        yield _line_of(f"the {len(steady)} of a steady host", steady)


def _line_of(name: str, rows: pd.DataFrame) -> str:
    size = rows.error.abs()
    near, held = (size <= BOUND).mean(), rows.inside.mean()
    cells = (f"{100 * size.median():.1f}", *(f"{100 * v:.0f}" for v in (near, size.max(), held)))
    return " ".join(["|", name, "|", *(f"{cell} % |" for cell in cells)])
