"""The check itself: what it asks, when it is content, what it says; and some cases of it.

Where SimGrid is not installed, the tests that need it are skipped; nothing else misses it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.network_check.__main__ import COLUMNS, main, status_of, table_of
from tests.network_check.cases import Case, all_cases, cables, switch
from tests.network_check.compare import ROOT, UNEXPLAINED, WHY, SimGridPython, compare
from tests.network_check.ours import run_ours
from tests.network_check.times import Message, Times
from tests.network_check.wiring import ways_of
from tpi_bench.virtual.network import transfers_s

SYSTEM_PYTHON = "/usr/bin/python3"
CASES = all_cases()
NETWORKS = {case.group: case for case in CASES.values()}


@pytest.fixture(scope="session")
def simgrid() -> SimGridPython:
    try:
        return SimGridPython(SYSTEM_PYTHON)
    except ValueError as error:
        pytest.skip(str(error))


def scripted(**times: Times) -> tuple[Callable[[Case, str], Times], list[str]]:
    """A SimGrid that answers so, and what it is asked."""
    asked: list[str] = []

    def ask(case: Case, assumption: str) -> Times:
        asked.append(assumption)
        return times[assumption]

    return ask, asked


@pytest.mark.parametrize("group", NETWORKS)
def test_both_sides_wire_a_network_alike(group: str) -> None:
    """A message that is alone: all latencies, and its bytes at the least rate, or at each."""
    case, nbytes = NETWORKS[group], 32768
    table = transfers_s(case.network, case.world_size, nbytes)
    for (src, dst), legs in ways_of(case.network, case.world_size).items():
        passing = [nbytes / leg.bytes_per_s for leg in legs]
        passing_s = sum(passing) if any(leg.is_stored for leg in legs) else max(passing, default=0)
        expected_s = sum(leg.latency_s for leg in legs) + passing_s
        assert table[src][dst] == pytest.approx(expected_s, abs=2e-9), (src, dst)


def test_what_it_covers() -> None:
    alike = [case for case in CASES.values() if case.group == "alike"]
    found = {(case.program, case.num_devices, case.message_bytes) for case in alike}
    programs = ("star", "direct", "ring", "tree", "galaxy")
    assert found == set(itertools.product(programs, (2, 4, 8, 16), (1024, 32768, 1048576)))
    assert all(case.network == switch(mbps=300, hop_ms=1) for case in alike)
    assert {case.network.topology for case in CASES.values()} == {"switch", "wan", "mesh", "wifi"}


def test_when_times_are_equal_it_asks_no_more() -> None:
    case = CASES["alike/star/2/1024"]
    ours = run_ours(case)
    ask, asked = scripted(as_is=ours)
    row = compare(case, ours, ask_simgrid=ask)
    assert (row.explanation, row.assumption, row.rest_s, asked) == ("", "as_is", 0, ["as_is"])


def later(times: Times, by_s: float) -> Times:
    """The last message arrives so much later, though all ranks end as they did."""
    *others, last = times.messages
    return Times(times.ends_s, [*others, last._replace(arrival_s=last.arrival_s + by_s)])


def test_the_first_assumption_that_makes_times_equal_explains() -> None:
    case = CASES["alike/star/2/1024"]
    ours = run_ours(case)
    ask, asked = scripted(as_is=later(ours, 1e-3), turns=ours)
    row = compare(case, ours, ask_simgrid=ask)
    assert (row.explanation, row.rest_s) == (WHY["turns"], 0)
    assert row.arrivals_differ_by_s == pytest.approx(1e-3)
    assert asked == ["as_is", "turns"]
    assert status_of([row]) == 0


@pytest.mark.parametrize(("by_s", "status"), [(1.9e-9, 0), (2.1e-9, 1)])
def test_what_no_assumption_explains_ends_with_1(by_s: float, status: int) -> None:
    """Two messages pass two ports each: two nanoseconds are rounding."""
    case = CASES["alike/star/2/1024"]
    ours = run_ours(case)
    ask, asked = scripted(**dict.fromkeys(WHY, later(ours, by_s)))
    row = compare(case, ours, ask_simgrid=ask)
    assert row.rounding_s == pytest.approx(2e-9)
    assert (row.explanation == UNEXPLAINED, status_of([row])) == (bool(status), status)
    assert len(asked) == (3 if status else 1)


def test_programs_that_send_other_things_are_not_compared() -> None:
    case = CASES["alike/star/2/1024"]
    ours = run_ours(case)
    ask, _ = scripted(as_is=replace(ours, messages=[Message(0, 1, 7, 0.1)]))
    with pytest.raises(RuntimeError, match="alike/star/2/1024: SimGrid's side did not send"):
        compare(case, ours, ask_simgrid=ask)


def test_without_simgrid_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As `make validate_network SIMGRID_PYTHON=...` does; this Python has none."""
    for python in (sys.executable, "/no/such/python"):
        out = tmp_path / "out"
        assert main(["--simgrid-python", python, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {python} has no SimGrid")
        assert "apt-get install python3-simgrid" in said
        assert len(said.splitlines()) == 1
        assert not out.exists()


def test_text_that_is_in_no_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "moon"]) == 2
    assert "error: --only=moon is in no case" in capsys.readouterr().out


def test_the_table_that_is_kept_is_of_these_cases() -> None:
    table = pd.read_csv(ROOT / "results/validate_network/table.csv", keep_default_na=False)
    kept = table[["case", "program", "devices", "message bytes"]].itertuples(index=False)
    assert [tuple(row) for row in kept] == [
        (case.group, case.program, case.num_devices, case.message_bytes) for case in CASES.values()
    ]
    assert UNEXPLAINED not in set(table.explanation)
    assert (table.rest_s <= table.rounding_s).all()
    alike = table[table.case == "alike"]
    assert ((alike.ours_s - alike.simgrid_s).abs() <= alike.rounding_s).all()


@pytest.mark.parametrize(
    ("name", "assumption"),
    [
        ("alike/ring/8/32768", "as_is"),
        ("alike/galaxy/4/1024", "as_is"),
        ("alike/star/8/32768", "turns"),
        ("cross-traffic/tree/4/32768", "turns"),
        ("own rates/direct/4/32768", "turns_then_way"),
        ("wifi stations/star/4/32768", "turns_then_way"),
        ("ten slow senders/flows/10/1250000", "as_is"),
    ],
)
def test_simgrid_and_ours(simgrid: SimGridPython, name: str, assumption: str) -> None:
    row = compare(CASES[name], run_ours(CASES[name]), ask_simgrid=simgrid.ask)
    assert row.assumption == assumption
    assert row.rest_s <= row.rounding_s < 1e-6


def test_simgrid_would_see_a_wrong_rate(simgrid: SimGridPython) -> None:
    """A per mille less on our side, with or without turns, is explained by nothing."""
    for name, network in (
        ("alike/ring/4/32768", switch(mbps=299.7)),
        ("own rates/star/4/32768", cables(4)),
    ):
        case = CASES[name]
        if network.mesh_links:
            links = [[a, b, ms, mbps * 0.999] for a, b, ms, mbps in network.mesh_links]
            network = replace(network, mesh_links=links)
        row = compare(case, run_ours(replace(case, network=network)), ask_simgrid=simgrid.ask)
        assert row.explanation == UNEXPLAINED
        assert status_of([row]) == 1


def test_packets_would_let_a_tiny_message_pass(simgrid: SimGridPython) -> None:
    """Whole messages of ten slow senders keep it waiting for 70 ms; packets would for 0.1."""
    case = CASES["ten slow senders and a tiny message/flows/11/1250000"]
    row = compare(case, run_ours(case), run_ours(case, 1500), ask_simgrid=simgrid.ask)
    assert row.assumption == "turns"
    assert row.arrivals_differ_by_s == pytest.approx(0.07, abs=1e-4)
    assert row.in_packets_differ_by_s is not None
    assert 0 < row.in_packets_differ_by_s < 2e-4


def test_the_command_writes_the_table(
    simgrid: SimGridPython, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `make validate_network` does, of three cases."""
    assert main(["--only", "alike/star/2/", "--out", str(tmp_path)]) == 0
    assert "alike: 3 rows" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.columns) == list(COLUMNS.values())
    assert list(table["message bytes"]) == [1024, 32768, 1048576]
    assert (table.ours_s > 0.004).all()
    assert len(table_of([])) == 0


def test_some_cases_alone_leave_the_kept_table(
    simgrid: SimGridPython, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (ROOT / "results/validate_network/table.csv").read_bytes()
    assert main(["--only", "alike/ring/2/1024"]) == 0
    assert "alike: 1 rows, ends are equal" in capsys.readouterr().out
    assert (ROOT / "results/validate_network/table.csv").read_bytes() == kept
