"""A test runtime: ranks are threads, messages are queues, reads finish when the test says so."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from tpi_bench.contract.runtime import SpanLog
from tpi_bench.engine.compiled import kernels


class LocalRuntime:
    """Rank programs under test run in one process; `delay` makes chosen sends late."""

    def __init__(
        self, rank: int, queues: dict, delay: Callable[[int, int], float] | None = None
    ) -> None:
        self.rank = rank
        self.world_size = max(key[0] for key in queues) + 1
        self.log = SpanLog(trace=True)
        self.events: list[tuple[str, str]] = []
        self._queues = queues
        self._delay = delay or (lambda src, dst: 0.0)

    def now(self) -> int:
        return time.monotonic_ns()

    def sleep(self, ns: int) -> None:
        time.sleep(ns / 1e9)

    def send(self, dst: int, buffer: torch.Tensor) -> None:
        time.sleep(self._delay(self.rank, dst))
        self._queues[self.rank, dst].put(buffer.clone())

    def recv(self, src: int, out: torch.Tensor) -> None:
        message = self._queues[src, self.rank].get(timeout=10)
        assert message.shape == out.shape
        out.copy_(message)

    def compute(self, key: str, fn: Callable[[], Any]) -> Any:
        return fn()

    def alloc(self, kind: str, nbytes: int) -> torch.Tensor:
        self.events.append(("alloc", str(nbytes)))
        return torch.zeros(nbytes, dtype=torch.uint8)

    def hold(self, kind: str, nbytes: int) -> None:
        pass

    def read(self, block: Any, out: torch.Tensor) -> Any:
        self.events.append(("read", block.key))
        return block.key

    def map(self, block: Any, nbytes: int, *, anew: bool = False) -> Any:
        self.events.append(("map anew" if anew else "map", f"{block.key} {nbytes}"))
        return torch.zeros(block.nbytes, dtype=torch.uint8)

    def waiting(self, handle: Any, key: str) -> None:
        self.events.append(("wait", key))


def run_ranks(
    world_size: int,
    program: Callable[[LocalRuntime], Any],
    delay: Callable[[int, int], float] | None = None,
) -> list[Any]:
    """Run `program` on every rank and return the results by rank."""
    kernels()  # loaded before there are threads, as a device does
    queues: dict = {(a, b): queue.Queue() for a in range(world_size) for b in range(world_size)}
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            results[rank] = program(LocalRuntime(rank, queues, delay))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]
    return results
