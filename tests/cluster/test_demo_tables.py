"""The tables of `tests/cluster_demo`, from numbers that are given."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.cluster_demo import beside_processes, driver_cost, rows, scanner
from tests.cluster_demo.driver_cost import Look


def test_a_drivers_cost_leaves_out_how_it_starts() -> None:
    """Ten seconds and two of CPU time before the first points, then 10 ms and 2 ms a point."""
    found = [Look(0, 10.0, 2.0, 100_000_000)]
    found += [Look(n, 10.0 + 0.01 * n, 2.0 + 0.002 * n, 150_000_000 + n) for n in range(10, 1001)]
    found.append(Look(0, 30.0, 9.0, 400_000_000))  # tables are written
    words = driver_cost.line_of(2, found).split()
    assert words[:6] == ["2", "1000", "9.9", "100.0", "2.00", "20.00"]
    assert " ".join(words[6:]) == "150 at 100, 150 at 250, 150 at 500, 150 at 1000"


def test_sweeps_double_up_to_the_points_that_are_asked_for() -> None:
    assert driver_cost.sizes_to(10_000) == [312, 625, 1250, 2500, 5000, 10_000]
    assert driver_cost.sizes_to(100) == [100]


def test_more_workers_than_cores_are_refused() -> None:
    with pytest.raises(ValueError, match="--workers=4096: this host has"):
        driver_cost.looks(4096, 1)


def test_a_demo_that_is_ended_takes_its_machines_down() -> None:
    """By SIGTERM, as of a time limit, while they are up. What stands for Ray here sleeps."""
    code = (
        "import os, subprocess, time; from tests.cluster_demo.machines import Machines\n"
        "class Slept(Machines):\n"
        "    def start(self, number):\n"
        "        command = self.command(number, ['sleep', '60'])\n"
        "        self.rays[number] = subprocess.Popen(command)\n"
        "with Slept(2) as machines:\n"
        "    print(machines.folder, *(ray.pid for ray in machines.rays.values()), flush=True)\n"
        "    time.sleep(60)\n"
    )
    demo = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    folder, *pids = demo.stdout.readline().split()
    assert len(pids) == 2
    demo.terminate()
    assert demo.wait(20) == 128 + signal.SIGTERM
    assert not Path(folder).exists()
    assert not any(psutil.pid_exists(int(pid)) for pid in pids)


def test_what_is_printed_is_kept_as_rows(tmp_path: Path) -> None:
    rows.Rows(None).add(fault="node")
    path = tmp_path / "new" / "faults.csv"
    kept = rows.Rows(path)
    kept.add(fault="node", took_s=1.5, left=0)
    kept.add(fault="link", took_s=2.5, left=0)
    first, second = pd.read_csv(path).to_dict("records")
    assert (first["fault"], first["took_s"], second["fault"]) == ("node", 1.5, "link")
    assert first["commit"]
    assert first["ended"] <= second["ended"]
    with pytest.raises(SystemExit, match=r"faults.csv is there already; name another file"):
        rows.Rows(path)


def test_ratios_are_taken_in_turns() -> None:
    """A host that gets slower with every repeat slows both."""
    times = {"here": [0.010, 0.020, 0.030], "there": [0.011, 0.021, 0.0315]}
    found = {
        (system, way): each for system in beside_processes.SYSTEMS for way, each in times.items()
    }
    trips = {"here": [30e-6], "there": [61e-6]}
    lines = beside_processes.lines_of(found, trips, ["here", "there"])
    assert lines[1].split() == [
        *("tpi", "20.00", "(10.0", "to", "30.0)", "x1.000"),
        *("21.00", "(11.0", "to", "31.5)", "x1.050"),
    ]
    assert lines[-1].split() == ["round", "trip", "30", "us", "61", "us"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it elsewhere in another way")
def test_a_stranger_finds_an_open_port_and_hears_what_it_is_told() -> None:
    with socket.create_server(("127.0.0.3", 0)) as listener:
        place = listener.getsockname()
        assert place in scanner.open_ports("127.0.0.3", "self")
        stranger = scanner.Stranger()
        stranger.try_port(place)
        told, _ = listener.accept()
        told.sendall(b"seventeen letters")
        told.close()
        stranger.hear()
        assert (stranger.num_in, stranger.longest) == (8, 17)
    assert place not in scanner.open_ports("127.0.0.3", "self")
