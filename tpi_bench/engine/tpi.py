"""The system under study: TPI-LLM's tensor parallelism with a choice of collective and window.

TPI-LLM, section 3: the master embeds, broadcasts the embedding, takes part in every block and alone
applies the output head; workers never see token ids, the embedding table or the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.engine.collectives import COLLECTIVE_NAMES, Collective, collective_by_name
from tpi_bench.engine.plans import tensor_parallel
from tpi_bench.engine.streaming import WindowedSystem
from tpi_bench.engine.wire import (
    AS_COMPUTED,
    Wire,
    check_wire,
    hidden_bytes,
    wire_setting,
    wire_words,
)

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime
    from tpi_bench.engine.device_model import Combine, DeviceModel


@dataclass(frozen=True, kw_only=True)
class TpiSystem(WindowedSystem):
    """`system=tpi`, and with other `loading` `mmap` and `blocking`.

    `window` off holds all weights. On one device, with a window, it is what the paper calls
    Transformers with the memory scheduler (its table 3).
    """

    name: str = setting("tpi", "how rows call it")
    collective: str = setting(
        "star",
        "the allreduce: star is the paper's, direct takes one step",
        COLLECTIVE_NAMES,
        common=True,
    )
    wire: str = wire_setting()

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

    def __post_init__(self) -> None:
        collective_by_name(self.collective)
        check_wire(self.wire)
        super().__post_init__()

    @property
    def label(self) -> str:
        return f"TPI {self.collective}" if self.name == "tpi" else self.name

    @property
    def variant(self) -> str:
        keeps_ends = self.name == "tpi" and self.resident_io
        words = [super().variant, "with head" if keeps_ends else "", wire_words(self.wire)]
        return " ".join(word for word in words if word)

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        return tensor_parallel(config, site.proportions, site.group)

    def traffic(self, job: Job) -> Traffic:
        """Two allreduces a layer, and the embedding to each worker."""
        collective, count = collective_by_name(self.collective), job.num_devices
        if count == 1:
            return Traffic()
        num_sums, nbytes = 2 * job.config.num_layers, hidden_bytes(job, self.wire)
        back = count - 1 if collective.to_hub else 0  # which the last sum has not
        return Traffic(
            latencies=token_steps(collective, count, job.config.num_layers),
            serial_bytes=num_sums * collective.between(count) * nbytes,
            all_bytes=(num_sums * collective.sent(count) + count - 1 - back) * nbytes,
        )

    @property
    def allreduce(self) -> Collective:
        """What sums the parts."""
        return collective_by_name(self.collective)

    def num_buffers(self, job: Job) -> int:
        """Packed messages are smaller, so that is more than they take."""
        collective = collective_by_name(self.collective)
        if self.wire == "auto" or job.num_devices == 1:
            return collective.num_receive_buffers(job.num_devices)
        return collective.messages(job.num_devices)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine.device_model import DeviceModel
        from tpi_bench.engine.drafters import drafter_of
        from tpi_bench.engine.generation import generate
        from tpi_bench.engine.packing import make_wire

        collective = self.allreduce
        model = DeviceModel(rt, job)
        most_values = job.request.most_new * job.config.hidden
        num_messages = collective.messages(rt.world_size)
        wire = make_wire(rt, self.wire, model.dtype, most_values, num_messages)
        if wire is AS_COMPUTED:
            model.hold_buffers(collective.num_receive_buffers(rt.world_size))
        if rt.rank:
            _run_worker(rt, model, collective, wire)
            return None
        master = _Master(rt, model, collective, wire)
        result = generate(rt, master.forward, job.request, output, drafter_of(rt, job))
        master.close()
        return result


class _Master:
    """Rank 0. `forward` is what the request loop calls; `close` ends the workers' loops."""

    def __init__(self, rt: Runtime, model: DeviceModel, collective: Collective, wire: Wire) -> None:
        from tpi_bench.engine.device_model import Steps

        self._model = model
        self._rt = rt
        self._wire = wire
        self._steps = Steps(rt)
        self._workers = range(1, rt.world_size)
        self._sums = pass_sums(rt, collective, wire)

    def forward(self, token_ids: list[int], position: int, num_back: int = 1) -> torch.Tensor:
        """New token ids -> logits (v,) of the last, or (n, v) of the last n."""
        x = self._model.embed(token_ids)
        self._steps.announce(self._workers, len(token_ids), position)
        self._wire.broadcast(self._rt, x, self._workers)
        x = self._model.layers(x, position, *self._sums)
        return self._model.logits(x, num_back)

    def close(self) -> None:
        self._steps.end()
        self._model.window.close()


def _run_worker(rt: Runtime, model: DeviceModel, collective: Collective, wire: Wire) -> None:
    """Ranks above 0: take a step's embedding, add the own part of every block, until the end."""
    from tpi_bench.engine.device_model import Steps

    sums = pass_sums(rt, collective, wire)
    for num_new, position in Steps(rt):
        model.layers(model.receive_hidden(0, num_new, wire), position, *sums)
    model.window.close()


def pass_sums(rt: Runtime, collective: Collective, wire: Wire) -> tuple[Combine, Combine]:
    """What makes a block's partial sums whole, and what those of the last block, which the master
    alone goes on with.
    """
    whole, to_hub = whole_sum(rt, collective, wire), collective.to_hub
    if to_hub is None or rt.world_size == 1:
        return whole, whole
    return whole, lambda partial: to_hub(rt, partial, wire)


def whole_sum(
    rt: Runtime, collective: Collective, wire: Wire
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Partial sums to whole ones; a single device has nothing to add."""
    if rt.world_size == 1:
        return lambda partial: partial
    return lambda partial: collective.run(rt, partial, wire)


def token_steps(collective: Collective, num_devices: int, num_layers: int) -> int:
    """One-way latencies on the critical path of one token, as the master sees it.

    Two allreduces a layer and the embedding's broadcast; the last sum has no way back. Where peers
    exchange without a hub, a worker that starts one latency late meets messages that are there
    already, and the broadcast hides: it is not counted, so this is a lower bound.
    """
    steps = 2 * num_layers * collective.num_steps(num_devices)
    if num_devices == 1 or collective.way_back is None:
        return steps
    return 1 + steps - collective.way_back(num_devices)
