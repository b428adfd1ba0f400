"""A system whose one device takes memory without end, from the middle of a token on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tpi_bench.contract.job import Job
from tpi_bench.contract.setting import setting
from tpi_bench.engine.tpi import TpiSystem

_PIECE_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class HungrySystem(TpiSystem):
    """The engine; rank `hungry_rank` begins to take more with its computation `from_step`."""

    hungry_rank: int = setting(1, "the device that takes more than it has")
    from_step: int = setting(2000, "after how many computations")

    def run_device(self, rt: Any, job: Job, output: Any) -> Any:
        own = _Hungry(rt, self.from_step) if rt.rank == self.hungry_rank else rt
        return super().run_device(own, job, output)


class _Hungry:
    """A runtime that takes memory with every computation."""

    def __init__(self, rt: Any, from_step: int) -> None:
        self._rt, self._steps_left = rt, from_step
        self._held: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rt, name)

    def compute(self, key: Any, fn: Any) -> Any:
        self._steps_left -= 1
        if self._steps_left < 0:
            self._held.append(np.ones(_PIECE_BYTES, dtype=np.uint8))
        return self._rt.compute(key, fn)
