"""Several products of values in one sweep."""

from __future__ import annotations

import pytest

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


def test_cases_are_drawn_from_one_grid_after_the_other() -> None:
    """A case keeps all choices of what everything sweeps; the same seed draws the same."""
    params = {"testbed": "processes,twin", "repeat": "0,1"}
    grids = [{"a": "1,2,3,4,5"}, {"b": "1,2,3,4,5"}, {"c": "1"}]
    jobs, _ = jobs_of_grids(params, grids, [], draw=5, seed=1)
    cases = [job[2] for job in jobs if job[:2] == ["testbed=processes", "repeat=0"]]
    assert len(jobs) == 5 * 4
    assert [case[0] for case in cases] == ["a", "a", "b", "b", "c"]
    assert jobs == jobs_of_grids(params, grids, [], draw=5, seed=1)[0]
    others = {tuple(jobs_of_grids(params, grids, [], draw=5, seed=n)[0][0]) for n in range(20)}
    assert len(others) > 1
    assert len(jobs_of_grids(params, grids, [], draw=99)[0]) == 11 * 4
    with pytest.raises(ValueError, match="draw=0 must be at least 1"):
        jobs_of_grids(params, grids, [], draw=0)


def test_typed_repeats_go_to_what_is_repeated() -> None:
    grids = [{"repeat": "0,1", "a": "x"}, {"a": "y"}]
    jobs, _ = jobs_of_grids({}, grids, ["repeat=0,1,2"])
    assert jobs == [["repeat=0", "a=x"], ["a=y"], ["repeat=1", "a=x"], ["repeat=2", "a=x"]]
    assert len(jobs_of_grids({}, [{"a": "x"}, {"a": "y"}], ["repeat=0,1,2"])[0]) == 6
    assert len(jobs_of_grids({"repeat": "0"}, grids, ["repeat=0,1,2"])[0]) == 6
