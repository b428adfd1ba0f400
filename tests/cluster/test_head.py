"""Ray's head is killed, with all that runs on its machine but the program that asked."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from tests.cluster.test_points import LONG, POINT, begun
from tests.cluster_demo.driver import Driver
from tests.cluster_demo.machines import Machines

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


def test_a_killed_head_ends_the_point_and_leaves_nothing(cache_dir: Path) -> None:
    with Machines(2) as machines:
        driver = Driver(machines)
        try:
            where = [f"testbed.address={machines.address}", f"cache_dir={cache_dir}"]
            begun(driver, *POINT, *LONG, "testbed=cluster", *where)
            start_s = time.monotonic()
            machines.kill(0)
            said = driver.end_of_point(30)
            assert time.monotonic() - start_s < 15
            if said is not None:  # Ray ends a program that has lost it, or lets it tell
                assert said["status"] == "device_lost"
                assert f"rank 0 on node {machines.addresses[0]} (" in said["error"]
            assert machines.await_no_devices()
        finally:
            driver.close()
