"""The reads alone: what a token streams from the disk, and nothing computed with it.

The same parts of the same files, by the same direct reads. Through the window, in which a part
gives its place up as soon as it is there, they take what window and disk allow together; without
(`through=nothing`), with parts always asked for and written over each other, what the disk gives by
itself. A token of `system=tpi` beside the two tells what of it the disk is, what the window's
memory costs, and what is not hidden behind them. `products` is the same for the memory.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import Streaming, System
from tpi_bench.engine.generation import warmed_up
from tpi_bench.engine.tpi import TpiSystem

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import ReadHandle, Runtime

THROUGH = ("window", "nothing")
_PARTS_AHEAD = 4  # of a block or two each: more than the kernel is asked for at once


@dataclass(frozen=True, kw_only=True)
class ReadsSystem(TpiSystem):
    """`system=reads`. Devices read what TPI streams, each for itself; the tokens mean nothing."""

    name: str = setting("reads", "how rows call it")
    window: Any = setting(
        "auto",
        "blocks a device may hold at once; off holds all, auto what fits in its memory",
        ("off", "auto", "1, 2, ..."),
        common=True,
    )
    through: str = setting(
        "window",
        "window: a part is read when its place is free; nothing: as fast as the disk gives it, "
        "over what was read before",
        THROUGH,
    )

    speculations: ClassVar[tuple[str, ...]] = ()
    talks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.through not in THROUGH:
            raise ValueError(
                f"system.through={self.through} is unknown; choose one of {', '.join(THROUGH)}"
            )
        if self.loading != "overlapped":
            raise ValueError(
                f"system.loading={self.loading} with system=reads, which reads ahead; set it to "
                "overlapped"
            )
        super().__post_init__()

    @property
    def label(self) -> str:
        return "reads alone"

    @property
    def variant(self) -> str:
        words = [super().variant, "" if self.through == "window" else "no window"]
        return " ".join(word for word in words if word)

    def traffic(self, job: Job) -> Traffic:
        """Each device reads for itself."""
        return Traffic()

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        reads = (_ThroughWindow if self.through == "window" else _ThroughNothing)(rt, job)

        def answer(limit: int, output: Output) -> Generation:
            result = Generation(token_ids=[], request_ns=rt.now(), token_ns=[], account=[])
            for _ in range(limit):
                reads.token()
                result.token_ids.append(0)
                result.token_ns.append(rt.now())
            return result

        result = warmed_up(job.request, output, answer)
        reads.close()
        return None if rt.rank else result


class _ThroughWindow:
    """As TPI reads, with devices that need no time for what they have read."""

    def __init__(self, rt: Runtime, job: Job) -> None:
        from tpi_bench.engine.device_model import DeviceModel

        streaming = _streaming(job, rt.rank)
        self._window = DeviceModel(rt, job, streaming).window
        self._streamed = [i for i, part in enumerate(streaming.streamed) if part is not None]

    def token(self) -> None:
        for index in self._streamed:
            self._window.acquire(index)
            self._window.release(index)

    def close(self) -> None:
        self._window.close()


class _ThroughNothing:
    """Reads are always under way, into memory that others are read to as well."""

    def __init__(self, rt: Runtime, job: Job) -> None:
        from tpi_bench.engine.device_model import DeviceModel

        streaming = _streaming(job, rt.rank)
        kept = replace(streaming, streamed=(None,) * len(streaming.streamed), places=())
        DeviceModel(rt, job, kept)  # in memory as TPI has it
        self._rt, self._parts = rt, streaming.streamed_parts
        self._memory = rt.alloc("window", streaming.area_bytes)
        self._next = itertools.cycle(self._parts)
        self._asked: deque[tuple[ReadHandle, str]] = deque()
        for _ in self._parts[:_PARTS_AHEAD]:
            self._ask()

    def token(self) -> None:
        for _ in self._parts:
            self._rt.waiting(*self._asked.popleft())
            self._ask()

    def close(self) -> None:
        for handle, _ in self._asked:
            handle.wait()

    def _ask(self) -> None:
        part = next(self._next)
        self._asked.append((self._rt.read(part, self._memory[: part.nbytes]), part.key))


def _streaming(job: Job, rank: int) -> Streaming:
    assert isinstance(job.program, System)
    return job.program.streaming(job, rank)
