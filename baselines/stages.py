"""What the devices of a pipeline do: the rank program of `pipeline` and `jupiter`.

Each device of the chain runs its layers and passes the hidden state on; the last one gives the last
position back to the master. A step's positions pass in one piece or in several, one behind the
other, so that all devices work at once on different pieces. Devices outside of the chain are idle.
With speculation as many of the last positions come back as the master asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.request import Generation
from tpi_bench.engine.wire import AS_COMPUTED, Wire

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime
    from tpi_bench.engine.device_model import DeviceModel

# How a step of so many positions from a first one on is cut: lengths, the same on all devices.
Cut = Callable[[int, int], Sequence[int]]


def in_one_piece(num_new: int, position: int) -> Sequence[int]:
    return (num_new,)


def pipeline_steps(num_devices: int) -> int:
    """One-way latencies of one token: through every device and back to the master."""
    return num_devices if num_devices > 1 else 0


def run_stages(
    rt: Runtime, job: Job, wire_name: str, output: Output, cut: Cut = in_one_piece
) -> Generation | None:
    """One device of a pipeline, to the end of the job. The master returns what was generated."""
    from tpi_bench.engine.device_model import DeviceModel, Steps
    from tpi_bench.engine.drafters import drafter_of
    from tpi_bench.engine.generation import generate
    from tpi_bench.engine.packing import make_wire

    assert job.plan is not None
    chain = job.plan.chain
    if rt.rank not in chain:
        next(iter(Steps(rt)), None)  # idle: nothing comes but the end
        return None
    model = DeviceModel(rt, job)
    most_values = job.request.most_new * job.config.hidden
    is_alone = len(chain) == 1
    wire = make_wire(rt, "auto" if is_alone else wire_name, model.dtype, most_values)
    if wire is AS_COMPUTED:
        model.hold_buffers(0 if is_alone else 1)
    if rt.rank:
        _run_stage(rt, model, chain, wire, cut)
        return None
    first = _FirstStage(rt, model, chain, wire, cut)
    result = generate(rt, first.forward, job.request, output, drafter_of(rt, job))
    first.close()
    return result


class _FirstStage:
    """The master: first layers, then the output head when the last device has answered."""

    def __init__(
        self, rt: Runtime, model: DeviceModel, chain: Sequence[int], wire: Wire, cut: Cut
    ) -> None:
        from tpi_bench.engine.device_model import Steps

        self._rt = rt
        self._wire = wire
        self._model = model
        self._chain = chain
        self._cut = cut
        self._steps = Steps(rt)

    def forward(self, token_ids: list[int], position: int, num_back: int = 1) -> torch.Tensor:
        """New token ids -> logits (v,) of the last, or (n, v) of the last n."""
        self._steps.announce(self._chain[1:], len(token_ids), position, num_back)
        first = 0
        for length in _pieces(self._cut, len(token_ids), position, num_back):
            x = self._model.embed(token_ids[first : first + length])
            x = self._model.layers(x, position + first, lambda partial: partial)
            if len(self._chain) > 1:
                self._rt.send(self._chain[1], self._wire.pack(self._rt, x))
            first += length
        if len(self._chain) > 1:
            x = self._model.receive_hidden(self._chain[-1], num_back, self._wire)
        return self._model.logits(x, num_back)

    def close(self) -> None:
        self._steps.end()
        self._model.window.close()


def _run_stage(rt: Runtime, model: DeviceModel, chain: Sequence[int], wire: Wire, cut: Cut) -> None:
    """A later device: take the hidden state, run the own layers, pass it on."""
    from tpi_bench.engine.device_model import Steps

    place = chain.index(rt.rank)
    is_last = place == len(chain) - 1
    steps = Steps(rt)
    for num_new, position in steps:
        first = 0
        for length in _pieces(cut, num_new, position, steps.num_back):
            x = model.receive_hidden(chain[place - 1], length, wire)
            x = model.layers(x, position + first, lambda partial: partial)
            first += length
            if not is_last:
                rt.send(chain[place + 1], wire.pack(rt, x))
        if is_last:
            rt.send(0, wire.pack(rt, x[-steps.num_back :]))
    model.window.close()


def _pieces(cut: Cut, num_new: int, position: int, num_back: int) -> Sequence[int]:
    """Lengths; a draft, of which several positions come back, passes in one piece."""
    return cut(num_new, position) if num_back == 1 else (num_new,)
