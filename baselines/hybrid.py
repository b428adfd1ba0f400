"""Tensor parallelism inside groups of devices, and a pipeline between the groups.

A group shares its layers' heads and columns and adds up its partial sums among itself; the hidden
state goes from group to group. So a token waits for allreduces of few devices, and a layer's
weights are read by as many devices as a group has. Groups of one are a pipeline, one group is TPI.
Runs on the same blocks, windows and runtime as both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Shard, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.engine.collectives import COLLECTIVE_NAMES, Collective, collective_by_name
from tpi_bench.engine.plans import split_proportional, tensor_parallel
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
    from tpi_bench.engine.device_model import DeviceModel


@dataclass(frozen=True, kw_only=True)
class HybridSystem(WindowedSystem):
    """`system=hybrid`. Shares of devices are those of testbed.proportions: of a group's layers in
    heads and columns, of the model in layers.
    """

    name: str = setting("hybrid", "how rows call it")
    group_size: int = setting(2, "devices that share each layer, a divisor of testbed.num_devices")
    collective: str = setting(
        "star",
        "the allreduce inside a group: star is TPI's, direct takes one step",
        COLLECTIVE_NAMES,
    )
    wire: str = wire_setting()

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

    def __post_init__(self) -> None:
        collective_by_name(self.collective)
        check_wire(self.wire)
        if isinstance(self.group_size, bool) or self.group_size < 1:
            raise ValueError(f"system.group_size={self.group_size} must be at least 1")
        super().__post_init__()

    @property
    def label(self) -> str:
        return f"{self.name} {self.collective}"

    @property
    def variant(self) -> str:
        words = [f"groups of {self.group_size}", super().variant, wire_words(self.wire)]
        return " ".join(word for word in words if word)

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        size, count = self.group_size, site.num_devices
        if count % size:
            raise ValueError(
                f"system.group_size={size} does not divide testbed.num_devices={count}; choose one "
                f"of {', '.join(str(n) for n in range(1, count + 1) if count % n == 0)}"
            )
        teams = teams_of(count, size)
        if len(teams) > config.num_layers:
            raise ValueError(
                f"testbed.num_devices={count} in groups of {size} are more groups than the model's "
                f"{config.num_layers} layers; set a larger system.group_size"
            )
        shares = [sum(site.proportions[rank] for rank in team) for team in teams]
        spans = split_proportional(config.num_layers, shares)
        shards: list[tuple[Shard, ...]] = []
        for team, (first, last) in zip(teams, spans, strict=True):
            own = [site.proportions[rank] for rank in team]
            try:
                plan = tensor_parallel(config, own, site.group)
            except ValueError as error:
                words = str(error).replace(
                    f"testbed.num_devices={size}", f"system.group_size={size}"
                )
                raise ValueError(words) from None
            shards += [
                tuple(
                    shard
                    for shard in whole
                    if first <= shard.layer < last or (shard.layer < 0 and not team[0])
                )
                for whole in plan.shards
            ]
        return Plan(scheme="hybrid", shards=tuple(shards))

    def traffic(self, job: Job) -> Traffic:
        """Inside each group as TPI's, and a hop from group to group, and back to the master."""
        collective, size = collective_by_name(self.collective), self.group_size
        num_teams, num_sums = job.num_devices // size, 2 * job.config.num_layers
        hops, nbytes = num_teams if num_teams > 1 else 0, hidden_bytes(job, self.wire)
        if size == 1:
            return Traffic(latencies=hops, serial_bytes=hops * nbytes, all_bytes=hops * nbytes)
        # Between the last sum of a group and the first of the next there is the hop instead.
        in_row = num_sums - (num_teams if num_teams > 1 else 0)
        all_sent = num_sums * collective.sent(size) + size - 1 + max(0, hops - 1) * size
        return Traffic(
            latencies=hybrid_steps(collective, size, num_teams, job.config.num_layers),
            serial_bytes=(in_row * collective.between(size) + hops) * nbytes,
            all_bytes=(all_sent + min(1, hops)) * nbytes,
        )

    def num_buffers(self, job: Job) -> int:
        """Packed messages are smaller, so that is more than they take."""
        collective, size = collective_by_name(self.collective), self.group_size
        if size == 1:
            return 1
        if self.wire == "auto":
            return max(1, collective.num_receive_buffers(size))
        return collective.messages(size)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine.device_model import DeviceModel, Steps
        from tpi_bench.engine.drafters import drafter_of
        from tpi_bench.engine.generation import generate
        from tpi_bench.engine.packing import make_wire

        model = DeviceModel(rt, job)
        collective = collective_by_name(self.collective)
        most_values = job.request.most_new * job.config.hidden
        wire = make_wire(
            rt, self.wire, model.dtype, most_values, collective.messages(self.group_size)
        )
        if wire is AS_COMPUTED and rt.world_size > 1:
            model.hold_buffers(max(1, self.num_buffers(job)))
        stage = _Group(rt, model, collective, wire, self.group_size)
        steps = Steps(rt)
        if rt.rank:
            for num_new, position in steps:
                stage.pass_on(stage.layers(stage.receive(num_new), position), steps.num_back)
            model.window.close()
            return None
        workers = range(1, rt.world_size)

        def forward(token_ids: list[int], position: int, num_back: int = 1) -> torch.Tensor:
            """New token ids -> logits (v,) of the last, or (n, v) of the last n."""
            x = model.embed(token_ids)
            steps.announce(workers, len(token_ids), position, num_back)
            wire.broadcast(rt, x, range(1, self.group_size))
            x = stage.layers(x, position)
            if rt.world_size > self.group_size:
                stage.pass_on(x)
                x = model.receive_hidden(rt.world_size - self.group_size, num_back, wire)
            return model.logits(x, num_back)

        result = generate(rt, forward, job.request, output, drafter_of(rt, job))
        steps.end()
        model.window.close()
        return result


class _Group:
    """A device among those that share its layers, between the groups before and after them."""

    def __init__(
        self, rt: Runtime, model: DeviceModel, collective: Collective, wire: Wire, size: int
    ) -> None:
        from tpi_bench.engine.team import team_of
        from tpi_bench.engine.tpi import whole_sum

        self._rt = rt
        self._model = model
        self._wire = wire
        self._size = size
        teams = teams_of(rt.world_size, size)
        self._place = rt.rank % size
        number = rt.rank // size
        self._before = teams[number - 1] if number else None
        self._following = teams[number + 1] if number + 1 < len(teams) else None
        # Where there is a hub it has the sum first, and gives it to all of the next group.
        self._has_hub = size > 1 and collective.way_back is not None
        self._whole: Callable[[torch.Tensor], torch.Tensor] = whole_sum(
            team_of(rt, teams[number]), collective, wire
        )

    def receive(self, num_new: int) -> torch.Tensor:
        """The state (T, h) that the layers here begin with."""
        source = 0
        if self._before is not None:
            source = self._before[0 if self._has_hub else self._place]
        return self._model.receive_hidden(source, num_new, self._wire)

    def layers(self, x: torch.Tensor, position: int) -> torch.Tensor:
        return self._model.layers(x, position, self._whole)

    def pass_on(self, x: torch.Tensor, num_back: int = 1) -> None:
        """To the next group, each to its counterpart or one to all; at the end the last positions
        to the master.
        """
        if self._following is None:
            if not self._place and self._before is not None:
                self._rt.send(0, self._wire.pack(self._rt, x[-num_back:].contiguous()))
            return
        if self._has_hub:
            if not self._place:
                message = self._wire.pack(self._rt, x)
                for peer in self._following:
                    self._rt.send(peer, message)
            return
        self._rt.send(self._following[self._place], self._wire.pack(self._rt, x))


def teams_of(num_devices: int, size: int) -> list[range]:
    """Ranks that follow each other, so many a group; the master is in the first."""
    return [range(first, first + size) for first in range(0, num_devices, size)]


def hybrid_steps(collective: Collective, size: int, num_teams: int, num_layers: int) -> int:
    """One-way latencies of a token at least: two allreduces a layer, each inside a group, a hop
    from group to group and one back.

    Where there is a hub, the master waits for its embedding to reach its group, and nobody for the
    way back of a group's last sum. Without a hub both ends of it are hidden.
    """
    steps = 2 * num_layers * collective.num_steps(size) + (num_teams if num_teams > 1 else 0)
    if size == 1 or collective.way_back is None:
        return steps
    return 1 + steps - num_teams * collective.way_back(size)
