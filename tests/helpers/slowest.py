"""The last line of a test run: which files took longest, so that a suite that grows shows where.

`make test` must stay below five minutes on two cores. No test asserts a time: another program on
the same host would make it fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

NUM_FILES = 8
_LEAST_S = 60.0  # of a run that is worth a line


def slowest(timed: Iterable[tuple[str, float]], num_files: int = NUM_FILES) -> str | None:
    """One line of the files that took most of what all tests took; None of a short run.

    `timed` has the id and the seconds of each phase of each test: `tests/app/test_x.py::test_y`.
    """
    by_file: Counter[str] = Counter()
    for node_id, seconds in timed:
        by_file[node_id.partition("::")[0]] += seconds  # type: ignore[assignment]
    total = sum(by_file.values())
    if total < _LEAST_S:
        return None
    most = ", ".join(f"{file} {seconds:.0f}" for file, seconds in by_file.most_common(num_files))
    return f"slowest files, of {total:.0f} s in all workers: {most}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """pytest's hook: of the process that collects all workers' reports."""
    reports = [each for group in terminalreporter.stats.values() for each in group]
    timed = [(r.nodeid, r.duration) for r in reports if isinstance(r, pytest.TestReport)]
    if line := slowest(timed):
        terminalreporter.write_line(line)
