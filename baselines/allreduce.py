"""The collective alone: what one allreduce costs on a network, without a model around it.

A "token" is one allreduce of a payload as decoding has it, (1, h): all devices start at one time,
and it lasts until the last of them has the sum (TPI-LLM, figure 3). The devices' clocks must be one
clock, as on one host and in virtual time. In a model, one allreduce's end overlaps the next block;
`in_a_row` times several that follow each other, and a "token" is their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import System
from tpi_bench.engine.collectives import COLLECTIVE_NAMES, collective_by_name
from tpi_bench.engine.wire import check_wire, hidden_bytes, wire_setting, wire_words

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime

_MARGIN_NS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class AllreduceSystem(System):
    """`system=allreduce`. `workload.num_new_tokens` is how many are timed, after a first one."""

    name: str = setting("allreduce", "how rows call it")
    collective: str = setting("star", "the allreduce that is timed", COLLECTIVE_NAMES)
    wire: str = wire_setting()
    in_a_row: int = setting(1, "how many follow each other where one is timed, as in a token")

    talks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        collective_by_name(self.collective)
        check_wire(self.wire)
        if self.in_a_row < 1:
            raise ValueError(f"system.in_a_row={self.in_a_row} must be at least 1")

    @property
    def variant(self) -> str:
        return wire_words(self.wire)

    def plan(self, config: ModelConfig, site: Site) -> None:
        """Nothing is owned."""

    def traffic(self, job: Job) -> Traffic:
        """The terms of the collective's closed form, of the payload as it travels; the mean of
        several in a row.
        """
        collective, nbytes = collective_by_name(self.collective), hidden_bytes(job, self.wire)
        if job.num_devices == 1:
            return Traffic()
        payloads = collective.payloads(job.num_devices)
        payloads += (self.in_a_row - 1) * collective.between(job.num_devices)
        return Traffic(
            latencies=collective.num_steps(job.num_devices),
            serial_bytes=payloads / self.in_a_row * nbytes,
            all_bytes=collective.sent(job.num_devices) * nbytes,
        )

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        import torch

        from tpi_bench.engine.packing import make_wire

        collective = collective_by_name(self.collective)
        hidden, dtype = job.config.hidden, getattr(torch, job.dtype)
        wire = make_wire(rt, self.wire, dtype, hidden, collective.messages(rt.world_size))
        payload = torch.zeros(1, hidden, dtype=dtype)  # so is its sum, however often
        result = Generation(token_ids=[], request_ns=0, token_ns=[], account=[])
        for _ in range(job.request.num_new_tokens + 1):
            start_ns = _agree_on_start(rt)
            rt.sleep(start_ns - rt.now())
            for _ in range(self.in_a_row):
                collective.run(rt, payload, wire)
            took_ns = (_last_end(rt) - start_ns) // self.in_a_row
            result.token_ids.append(0)
            result.token_ns.append(sum(result.token_ns[-1:]) + took_ns)
        return result if rt.rank == 0 else None


def _agree_on_start(rt: Runtime) -> int:
    """A time on the clock that all share, by which the slowest device has heard of it."""
    import torch

    message = torch.zeros(1, dtype=torch.int64, device="cpu")
    if rt.rank:
        for _ in range(2):
            rt.send(0, message)
            rt.recv(0, message)
        return int(message)
    began = rt.now()
    _gather(rt, message)
    for worker in range(1, rt.world_size):
        rt.send(worker, message)
    _gather(rt, message)
    round_trips_ns = rt.now() - began  # at least one there and back, of everyone
    message[0] = rt.now() + round_trips_ns + _MARGIN_NS
    for worker in range(1, rt.world_size):
        rt.send(worker, message)
    return int(message)


def _last_end(rt: Runtime) -> int:
    """When the last device had its sum; known to the master, and to a worker only its own."""
    import torch

    end = torch.tensor([rt.now()], dtype=torch.int64, device="cpu")
    if rt.rank:
        rt.send(0, end)
        return int(end)
    return max(int(end), *_gather(rt, torch.empty_like(end)), 0)


def _gather(rt: Runtime, message: torch.Tensor) -> list[int]:
    found = []
    for worker in range(1, rt.world_size):
        rt.recv(worker, message)
        found.append(int(message))
    return found
