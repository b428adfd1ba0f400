"""What is said at the end of a test run of where its time went."""

from __future__ import annotations

from tests.helpers.slowest import slowest


def test_files_are_told_in_the_order_of_their_time() -> None:
    timed = [("tests/a.py::one[x]", 30.0), ("tests/b.py::two", 50.0), ("tests/a.py::one[x]", 25.4)]
    line = "slowest files, of 105 s in all workers: tests/a.py 55, tests/b.py 50"
    assert slowest(timed) == line
    assert slowest(timed, 1) == line.partition(", tests/b")[0]


def test_of_a_short_run_there_is_nothing_to_say() -> None:
    assert slowest([("tests/a.py::one", 59.0)]) is None
    assert slowest([]) is None
