"""Several products of values in one sweep."""

from __future__ import annotations

from tpi_bench.app.sweeper import jobs_of_grids


def test_grids_add_to_what_all_sweep_and_the_command_line_wins() -> None:
    grids = [{"b": "1,2"}, {"c": "5"}]
    jobs, _ = jobs_of_grids({"a": "0,1"}, grids, ["c=7"])
    assert jobs == [
        ["a=0", "b=1", "c=7"],
        ["a=0", "b=2", "c=7"],
        ["a=1", "b=1", "c=7"],
        ["a=1", "b=2", "c=7"],
        ["a=0", "c=7"],
        ["a=1", "c=7"],
    ]


def test_repeats_are_taken_in_turns_over_all_grids() -> None:
    grids = [{"a": "1,2", "repeat": "0,1"}, {"b": "3"}, {"repeat": "0,1", "c": "4"}]
    jobs, _ = jobs_of_grids({}, grids, [])
    assert jobs == [
        ["a=1", "repeat=0"],
        ["a=2", "repeat=0"],
        ["b=3"],
        ["repeat=0", "c=4"],
        ["a=1", "repeat=1"],
        ["a=2", "repeat=1"],
        ["repeat=1", "c=4"],
    ]


def test_a_key_given_again_keeps_its_place() -> None:
    assert jobs_of_grids({"a": "0,1", "b": "2"}, [{}], ["a=9"])[0] == [["a=9", "b=2"]]


def test_lists_are_values_and_not_sweeps() -> None:
    jobs, _ = jobs_of_grids({}, [{}], ["device=[x,y]", "n=1,2"])
    assert jobs == [
        ["device=[x,y]", "n=1"],
        ["device=[x,y]", "n=2"],
    ]


def test_a_point_of_two_grids_is_run_once() -> None:
    grids = [{"a": "1,2", "b": "x"}, {"b": "x,y", "a": "1"}]
    jobs, _ = jobs_of_grids({}, grids, ["b=z"])
    assert jobs == [["a=1", "b=z"], ["a=2", "b=z"]]


def test_settings_that_a_system_does_not_have() -> None:
    """Of the experiment they leave its points out; what is given by hand is for Hydra to refuse."""
    grids = [{"system": "tpi", "n": "1"}, {"system": "tpi_window2,galaxy", "system.window": "2,4"}]
    jobs, left_out = jobs_of_grids({}, grids, [])
    assert len(jobs) == 1 + 2
    assert left_out == {"system=galaxy has no window": 2}
    jobs, left_out = jobs_of_grids({}, grids, ["system=edgeshard,allreduce"])
    assert len(jobs) == 2 + 2
    assert left_out == {"system=allreduce has no window": 2}
    jobs, left_out = jobs_of_grids({}, [{}], ["system=galaxy", "system.window=2"])
    assert jobs == [["system=galaxy", "system.window=2"]]
    assert not left_out


def test_a_system_takes_part_where_it_is_named() -> None:
    """And everywhere when it is named nowhere."""
    grids = [{"system": "tpi,pipeline", "n": "1"}, {"system": "tpi", "n": "2"}, {"m": "3"}]
    jobs, _ = jobs_of_grids({}, grids, ["system=pipeline,mmap"])
    assert jobs == [
        ["system=pipeline", "n=1"],
        ["system=mmap", "n=1"],
        ["system=mmap", "n=2"],
        ["m=3", "system=pipeline"],
        ["m=3", "system=mmap"],
    ]
