"""The function a device process starts with. It keeps torch out of the launcher."""

from __future__ import annotations

from multiprocessing.connection import Connection

from tpi_bench.caps import Cap
from tpi_bench.job import Job


def run_device_process(rank: int, job: Job, cap: Cap, control: Connection) -> None:
    """Import what the fork server has loaded already, and run the device."""
    from tpi_bench.device import device_main

    device_main(rank, job, cap, control)
