"""`make validate_network`: all cases through both networks, a table, and whether all is explained.

    python -m tests.network_check [--simgrid-python PATH] [--out FOLDER] [--only TEXT]

Ends with 0 when every difference beyond rounding is explained, 1 when one is not, 2 when SimGrid is
not there.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from tests.network_check.cases import Case, all_cases
from tests.network_check.compare import ROOT, UNEXPLAINED, Row, SimGridPython, compare
from tests.network_check.ours import run_ours

PACKET_BYTES = 1500
COLUMNS = {
    "case": "case",
    "program": "program",
    "network": "network",
    "devices": "devices",
    "message_bytes": "message bytes",
    "ours_s": "ours_s",
    "simgrid_s": "simgrid_s",
    "difference": "difference",
    "arrivals_differ_by_s": "arrivals_differ_by_s",
    "explanation": "explanation",
    "rest_s": "rest_s",
    "rounding_s": "rounding_s",
    "in_packets_differ_by_s": "in_packets_differ_by_s",
}


def run(cases: Sequence[Case], simgrid: SimGridPython, num_workers: int = 2) -> list[Row]:
    """In the order of `cases`. SimGrid's processes run beside each other."""
    ours = [run_ours(case) for case in tqdm(cases, desc="ours", leave=False)]
    cut = [run_ours(case, PACKET_BYTES) if case.program == "flows" else None for case in cases]
    with ThreadPoolExecutor(num_workers) as pool:
        rows = pool.map(functools.partial(compare, ask_simgrid=simgrid.ask), cases, ours, cut)
        return list(tqdm(rows, desc="SimGrid", total=len(cases), leave=False))


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(
        [[getattr(row, name) for name in COLUMNS] for row in rows], columns=[*COLUMNS.values()]
    )


def summary_of(table: pd.DataFrame) -> str:
    """By case and explanation: how many rows, and how far apart both sides are."""
    table = table.assign(explanation=table.explanation.replace("", "(none needed)"))
    groups = table.groupby(["case", "explanation"], sort=False)
    lines = []
    for (case, explanation), rows in groups:
        least, most = 100 * rows.difference.min(), 100 * rows.difference.max()
        is_equal = max(-least, most) < 0.005
        ends = "ends are equal" if is_equal else f"ends {least:+.2f} to {most:+.2f} %"
        lines.append(
            f"{case}: {len(rows)} rows, {ends}, "
            f"arrivals up to {rows.arrivals_differ_by_s.max() * 1e3:.6g} ms apart; "
            f"{rows.rest_s.max() * 1e9:.3g} ns left: {explanation}"
        )
        if rows.in_packets_differ_by_s.notna().any():
            most_ms = rows.in_packets_differ_by_s.max() * 1e3
            lines.append(f"    with messages cut into packets {most_ms:.6g} ms apart")
    return "\n".join(lines)


def status_of(rows: Sequence[Row]) -> int:
    return int(any(row.explanation == UNEXPLAINED for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.network_check", description=__doc__)
    parser.add_argument("--simgrid-python", default="/usr/bin/python3", help="has SimGrid")
    parser.add_argument("--out", type=Path, help="of the table; not needed for all cases")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    given = parser.parse_args(arguments)
    names = all_cases()
    cases = [case for name, case in names.items() if given.only in name]
    if not cases:
        print(f"error: --only={given.only} is in no case; give a part of one of these:")
        print(*names, sep="\n")
        return 2
    try:
        simgrid = SimGridPython(given.simgrid_python)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = run(cases, simgrid)
    table = table_of(rows)
    print(summary_of(table))
    unexplained = table[table.explanation == UNEXPLAINED]
    if len(unexplained):
        print(f"\n{len(unexplained)} rows differ and nobody knows why:\n{unexplained.to_string()}")
    out = given.out or (None if given.only else ROOT / "results/validate_network")
    if out:  # the table that is kept is of all cases
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "table.csv", index=False, float_format="%.12g")
        print(f"\n{len(rows)} rows: {out / 'table.csv'}")
    return status_of(rows)


if __name__ == "__main__":
    sys.exit(main())
