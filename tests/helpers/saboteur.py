"""A system whose one rank misbehaves. Apart, so that devices load little to run it."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpi_bench.contract.job import Job
from tpi_bench.engine.device_model import Steps
from tpi_bench.engine.tpi import TpiSystem

NUM_BYTES = 400_000_000


@dataclass(frozen=True)
class Saboteur(TpiSystem):
    """Runs the engine, but one rank does something else when a step comes."""

    rank: int
    harm: str

    def run_device(self, rt: Any, job: Job, output: Any) -> Any:
        if rt.rank == self.rank:
            if self.harm == "raise":
                raise RuntimeError("a worker's own mistake")
            if self.harm == "exit":
                os._exit(7)
            if self.harm == "loop":
                while True:
                    time.sleep(0.1)
            if self.harm == "allocate":
                held = np.ones(NUM_BYTES, dtype=np.uint8)
                time.sleep(held[0] * 0.1)
            if self.harm == "map":  # the file that a library would be given
                with open(job.checkpoint_path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                    mapped[:: mmap.PAGESIZE]  # reads every page
            if self.harm == "slow":
                rt.compute(("attn",), lambda: time.sleep(2.0))
            if self.harm == "forget":
                Steps.end = lambda steps: None  # type: ignore[method-assign]
            if self.harm == "crop":
                send = rt.send
                rt.send = lambda dst, buffer: send(dst, buffer[..., :-1].contiguous())
        return super().run_device(rt, job, output)
