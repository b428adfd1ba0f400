"""What `task=survey` writes is what virtual time takes; without a cluster it says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_nodes import place
from tests.helpers.advising import SMALL, asked
from tests.helpers.calibration import HOST, PLAIN
from tests.helpers.command_line import run
from tpi_bench.app.advise_asked import with_advice_defaults
from tpi_bench.app.arguments import for_hydra
from tpi_bench.contract.job import LinkReading
from tpi_bench.measure.survey import Survey, refuse_unusable, survey


def rows(values: dict[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "typical": v, "rounds": [v] * 3} for name, v in values.items()]


def found(factor: float) -> dict[str, Any]:
    """A machine, faster than `PLAIN` by a factor."""
    rates = PLAIN | {"memory_gb_per_s": factor * PLAIN["memory_gb_per_s"]}
    threads = {"1": rows(PLAIN), "2": rows(rates)}
    return {"threads": threads, "host": rows(HOST), "machine": {"name": "x", "memory_gb": 8.0}}


def link(src: int, dst: int, trip_ms: float, mbps: float) -> LinkReading:
    least = trip_ms / 1e3
    return LinkReading(
        src=src, dst=dst, round_trip_s=2 * least, round_trip_min_s=least, bandwidth_mbps=mbps
    )


SURVEY = Survey(
    places=[place(1), place(2)],
    calibrations=[found(1), found(3)],
    links=[link(0, 1, 4.0, 300.0), link(1, 0, 3.0, 200.0)],
)


def test_a_link_is_half_of_its_least_round_trip_and_its_slower_direction() -> None:
    assert SURVEY.mesh_links() == [[0, 1, 1.5, 200.0]]


def test_its_table_names_nodes_and_links() -> None:
    lines = SURVEY.text().split("\n")
    assert lines[1].split() == ["10.0.0.1", "40", "2", "90"]
    assert lines[2].split() == ["10.0.0.2", "120", "2", "90"]
    assert lines[-1].split() == ["1", "0", "6.000", "200"]


def test_virtual_time_takes_what_it_wrote(cache_dir: Path, tmp_path: Path) -> None:
    SURVEY.write(tmp_path)
    assert sorted(path.name for path in (tmp_path / "devices").iterdir()) == [
        "node0_laptop1.json",
        "node1_laptop2.json",
    ]
    done = run(
        *("task=measure", "testbed=virtual", "model=debug", "workload.prompt_tokens=4"),
        *("workload.num_new_tokens=3", f"device={tmp_path}/devices/", "network=survey"),
        *("--config-dir", str(tmp_path), "report=json", f"output_dir={tmp_path / 'rows'}"),
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    (stored,) = (tmp_path / "rows" / "points").glob("*.json")
    row = json.loads(stored.read_text())["run"]
    assert row["device"] == "node0_laptop1, node1_laptop2"
    assert (row["num_devices"], row["topology"]) == (2, "mesh")
    assert row["link_round_trip_min_s"] == pytest.approx(3e-3, rel=0.05)


def test_advice_takes_its_devices_and_its_links(cache_dir: Path, tmp_path: Path) -> None:
    """`device=FOLDER/` alone; with a network of the user's, or other devices, those count."""
    SURVEY.write(tmp_path)
    found = asked(*SMALL, f"device={tmp_path}/", cache_dir=cache_dir)
    assert [profile.name for profile in found.household.profiles] == [
        "node0_laptop1",
        "node1_laptop2",
    ]
    network = found.household.network
    assert (network.topology, network.mesh_links) == ("mesh", [[0, 1, 1.5, 200.0]])
    wifi = asked(*SMALL, f"device={tmp_path}/", "network=wifi", cache_dir=cache_dir)
    assert wifi.household.network.topology == "wifi"
    one = asked(*SMALL, f"device={tmp_path}/devices/node0_laptop1.json", cache_dir=cache_dir)
    assert one.household.network.topology == "switch"


def test_options_may_stand_beside_advice(cache_dir: Path, tmp_path: Path) -> None:
    SURVEY.write(tmp_path)
    typed = for_hydra(
        ["task=advise", f"device={tmp_path}/", "--config-dir", str(tmp_path), "network=survey"],
        lambda: "",
    )
    given = with_advice_defaults(typed)
    assert given[-2:] == ["--config-dir", str(tmp_path)]
    assert given.count("network=survey") == 1


class OneMachine:
    """A cluster whose nodes are calibrated without being asked anything of this host."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def call(self, node: Any, method: str, *args: Any, timeout_s: float) -> dict[str, Any]:
        self.asked.append(args)
        numbers = found(1)["threads"]
        return found(1) | {"threads": numbers | {"4": numbers["2"]}}


def test_a_node_is_surveyed_with_the_threads_that_a_device_has_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two nodes that are one machine of four cores: once, with two threads each."""
    monkeypatch.setattr("tpi_bench.measure.survey.measured_links", lambda *given: [])
    cluster: Any = OneMachine()
    both = [place(1, machine="one"), place(2, machine="one")]
    result = survey(cluster, both, None, 3)
    assert [args[1] for args in cluster.asked] == [(None, 3, 2)]
    assert [list(each["threads"]) for each in result.calibrations] == [["2"], ["2"]]


def test_a_calibration_that_makes_no_profile_is_refused() -> None:
    refuse_unusable(place(2), found(1))
    with pytest.raises(
        ValueError, match=r"\(laptop2\) was disturbed while it was calibrated \(dev"
    ):
        refuse_unusable(place(2), found(-1))


def test_a_survey_needs_a_cluster(cache_dir: Path) -> None:
    done = run("task=survey", cache_dir=cache_dir)
    assert done.returncode == 2
    assert "task=survey measures the nodes of a cluster; add testbed=cluster" in done.stderr
