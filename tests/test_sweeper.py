"""Several products of values in one sweep."""

from __future__ import annotations

from tpi_bench.sweeper import jobs_of_grids


def test_grids_add_to_what_all_sweep_and_the_command_line_wins() -> None:
    grids = [{"b": "1,2"}, {"c": "5"}]
    assert jobs_of_grids({"a": "0,1"}, grids, ["c=7"]) == [
        ["a=0", "b=1", "c=7"],
        ["a=0", "b=2", "c=7"],
        ["a=1", "b=1", "c=7"],
        ["a=1", "b=2", "c=7"],
        ["a=0", "c=7"],
        ["a=1", "c=7"],
    ]


def test_a_key_given_again_keeps_its_place() -> None:
    assert jobs_of_grids({"a": "0,1", "b": "2"}, [{}], ["a=9"]) == [["a=9", "b=2"]]


def test_lists_are_values_and_not_sweeps() -> None:
    assert jobs_of_grids({}, [{}], ["device=[x,y]", "n=1,2"]) == [
        ["device=[x,y]", "n=1"],
        ["device=[x,y]", "n=2"],
    ]
