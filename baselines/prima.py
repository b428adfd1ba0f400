"""prima.cpp (arXiv 2504.08791): a piped ring, in which a token passes the devices several times.

A round takes so many consecutive layers of each device, the next round the layers after them. When
a device has sent its result on it loads the segment that it needs in the next round, while the
others work: with a single round that would be the very layers it has just used, and what is read
ahead would evict itself. As in the program, the master's segment is the last of a round, so that it
has the hidden state for the output head. The planner is Halda (`halda.py`), or another one's share
of a round. Runs on the same blocks and runtime as the TPI engine.

A memory that is too small keeps the same matrices of every layer and loads the rest by direct reads
into room for one segment; prima.cpp maps its files and leaves both to the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from baselines.halda import OBJECTIVES, round_counts
from baselines.layer_planners import (
    OF_PROFILES,
    PLANNERS,
    Layers,
    Part,
    check_planner,
    halda_ring,
)
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.budget import within_memory
from tpi_bench.engine.plans import layer_chain
from tpi_bench.engine.segment_budget import SegmentPlanner
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
    from tpi_bench.engine.device_model import DeviceModel, LayerBlock


@dataclass(frozen=True, kw_only=True)
class PrimaSystem(WindowedSystem):
    """`system=prima`. With `window` auto a device of unknown memory holds all its blocks."""

    name: str = setting("prima", "how rows call it")
    planner: str = setting(
        "halda",
        "who gets how many layers of a round: halda chooses devices and rounds too; the others are "
        "those of system=pipeline",
        tuple(PLANNERS),
    )
    rounds: Any = setting(
        "auto",
        "how often a token passes the ring, a divisor of the model's layers; auto: as Halda plans "
        "or, with another planner, 1 where all is held and else the next more",
        ("auto", "1, 2, ..."),
    )
    objective: str = setting(
        "paper",
        "what Halda adds up: code: arithmetic and disk, as prima.cpp's program; paper: reads from "
        "memory and hops too; overlap: loads that others' work hides are left out",
        OBJECTIVES,
    )
    choose_devices: bool = setting(
        True, "whether Halda drops devices that it has one layer a round for, but the master"
    )
    prefetch: bool = setting(
        True, "load the next round's segment once the result is sent; false: a block when needed"
    )
    wire: str = wire_setting()

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

    def __post_init__(self) -> None:
        check_wire(self.wire)
        check_planner(self.planner)
        _ = self._given_rounds
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"system.objective={self.objective} is unknown; choose one of "
                f"{', '.join(OBJECTIVES)}"
            )
        super().__post_init__()

    @property
    def variant(self) -> str:
        words = [
            "" if self.window == "auto" else super().variant,
            "" if self.planner == "halda" else self.planner,
            f"rounds {self.rounds}" if self._given_rounds else "",
            "" if self.prefetch else "no prefetch",
            wire_words(self.wire),
        ]
        return " ".join(word for word in words if word)

    @property
    def needs_profiles(self) -> bool:
        """Most planners want to know what devices can do."""
        return self.planner in OF_PROFILES

    @property
    def _given_rounds(self) -> int | None:
        """None for `auto`."""
        rounds = self.rounds
        if str(rounds).lower() == "auto":
            return None
        if isinstance(rounds, int) and rounds is not True and rounds >= 1:
            return rounds
        raise ValueError(f"system.rounds={rounds} must be a whole number of at least 1, or auto")

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        rounds, parts = self._parts(config, site)
        ring = [*(part for part in parts if part[0]), *(part for part in parts if not part[0])]
        ends = list(itertools.accumulate(count for _, count in ring * rounds))
        stages = [
            (rank, end - count, end) for (rank, count), end in zip(ring * rounds, ends, strict=True)
        ]
        return layer_chain(config, stages, site.num_devices)

    def _parts(self, config: ModelConfig, site: Site) -> tuple[int, list[Part]]:
        """Rounds, and each device's layers of one."""
        layers = Layers(
            config=config,
            site=site,
            wire=self.wire,
            streams=not self.window_config.holds_all,
            num_layers=config.num_layers,
        )
        given = self._given_rounds
        if given and config.num_layers % given:
            divisors = [n for n in range(1, config.num_layers + 1) if config.num_layers % n == 0]
            raise ValueError(
                f"system.rounds={given} does not divide the model's {config.num_layers} layers; "
                f"choose one of {', '.join(map(str, divisors))}, or auto"
            )
        if self.planner == "halda":
            choice = [given] if given else round_counts(config.num_layers)
            plan = halda_ring(layers, choice, self.objective, drops=self.choose_devices)
            return plan.rounds, [(rank, count) for rank, count in enumerate(plan.windows) if count]
        if given:
            return given, self._shared(layers, given)
        parts = self._shared(layers, 1)
        if all(count <= layers.rooms()[rank] for rank, count in parts):
            return 1, parts
        fitting = [
            k for k in round_counts(config.num_layers)[1:] if config.num_layers // k >= len(parts)
        ]
        return (fitting[0], self._shared(layers, fitting[0])) if fitting else (1, parts)

    def _shared(self, layers: Layers, rounds: int) -> list[Part]:
        """Another planner's division of a round. Raises ValueError for more devices than layers."""
        count = layers.num_layers // rounds
        return PLANNERS[self.planner](replace(layers, num_layers=count, rounds=rounds))

    def traffic(self, job: Job) -> Traffic:
        assert job.plan is not None
        steps = ring_steps(route_of(job.plan))
        nbytes = steps * hidden_bytes(job, self.wire)
        return Traffic(latencies=steps, serial_bytes=nbytes, all_bytes=nbytes)

    def num_buffers(self, job: Job) -> int:
        return 1

    def streaming(self, job: Job, rank: int) -> Streaming:
        keep = self.window_config.keep
        if keep is None:
            return super().streaming(job, rank)
        if math.isinf(job.free_of(rank)):
            return Streaming.of_all(job.blocks[rank])
        return within_memory(job, rank, keep, self.num_buffers(job), SegmentPlanner)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        from tpi_bench.engine.device_model import DeviceModel, Steps
        from tpi_bench.engine.drafters import drafter_of
        from tpi_bench.engine.generation import generate
        from tpi_bench.engine.packing import make_wire
        from tpi_bench.engine.segments import segment_source

        assert job.plan is not None
        if rt.rank not in job.plan.chain:
            next(iter(Steps(rt)), None)  # idle: nothing comes but the end
            return None
        model = DeviceModel(rt, job, source=segment_source)
        is_alone = len(job.plan.chain) == 1
        most_values = job.request.most_new * job.config.hidden
        wire = make_wire(rt, "auto" if is_alone else self.wire, model.dtype, most_values)
        if wire is AS_COMPUTED:
            model.hold_buffers(0 if is_alone else 1)
        ring = _Ring(rt, model, job.plan, wire, prefetches=self.prefetch)
        if rt.rank:
            for num_new, position in Steps(rt):
                ring.round_trips(num_new, position)
            model.window.close()
            return None
        master = _Master(rt, model, job.plan, ring)
        result = generate(rt, master.forward, job.request, output, drafter_of(rt, job))
        master.close()
        return result


class _Ring:
    """A device's segments, between those who have the hidden state before and after them."""

    def __init__(
        self, rt: Runtime, model: DeviceModel, plan: Plan, wire: Wire, *, prefetches: bool
    ) -> None:
        self._rt = rt
        self._model = model
        self._wire = wire
        self._prefetches = prefetches
        route = route_of(plan)
        stops = [place for place, rank in enumerate(route) if rank == rt.rank]
        layers = {index: shard.layer for index, shard in enumerate(plan.shards[rt.rank])}
        # Who has the state before a segment, its blocks, and who has it next; at the ends of the
        # route that is the master.
        self._segments = [
            ([0, *route][place], blocks, [*route, 0][place + 1])
            for place, blocks in zip(stops, _runs(model.layer_blocks, layers), strict=True)
        ]
        self.first = route[0]

    def round_trips(
        self, num_new: int, position: int, x: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """All segments in their turns. `x` (T, h) is where a master begins; what it ends with."""
        self._model.begin(num_new, position)
        for before, blocks, following in self._segments:
            if before != self._rt.rank:
                x = self._model.receive_hidden(before, num_new, self._wire)
            assert x is not None
            x = self._model.through(blocks, x, position, lambda partial: partial)
            if following != self._rt.rank:
                self.send(following, x)
        return x

    def send(self, following: int, x: torch.Tensor) -> None:
        """Pass the state on, and only then load what comes next."""
        from tpi_bench.engine.segments import SegmentWindow

        self._rt.send(following, self._wire.pack(self._rt, x))
        if self._prefetches and isinstance(self._model.window, SegmentWindow):
            self._model.window.prefetch()


class _Master:
    """Rank 0: embeds, has the last segment of each round, and the output head."""

    def __init__(self, rt: Runtime, model: DeviceModel, plan: Plan, ring: _Ring) -> None:
        from tpi_bench.engine.device_model import Steps

        self._rt = rt
        self._model = model
        self._ring = ring
        self._workers = [rank for rank in plan.chain if rank]
        self._steps = Steps(rt)

    def forward(self, token_ids: list[int], position: int, num_back: int = 1) -> torch.Tensor:
        """New token ids -> logits (v,) of the last, or (n, v) of the last n."""
        self._steps.announce(self._workers, len(token_ids), position)
        x = self._model.embed(token_ids)
        if self._ring.first:
            self._ring.send(self._ring.first, x)
        end = self._ring.round_trips(len(token_ids), position, x)
        assert end is not None
        return self._model.logits(end, num_back)

    def close(self) -> None:
        self._steps.end()
        self._model.window.close()


def _runs(
    blocks: Sequence[tuple[int, LayerBlock]], layers: dict[int, int]
) -> list[list[tuple[int, LayerBlock]]]:
    """A device's blocks in runs of consecutive layers."""
    found: list[list[tuple[int, LayerBlock]]] = []
    for index, block in blocks:
        if found and layers[index] - layers[found[-1][-1][0]] <= 1:
            found[-1].append((index, block))
        else:
            found.append([(index, block)])
    return found


def route_of(plan: Plan) -> list[int]:
    """The devices that a token passes, in order, each as often as it has a segment."""
    owners = sorted(
        (shard.layer, rank)
        for rank, shards in enumerate(plan.shards)
        for shard in shards
        if shard.kind == "attn"
    )
    return [rank for rank, _ in itertools.groupby(rank for _, rank in owners)]


def ring_steps(route: Sequence[int]) -> int:
    """One-way latencies of one token: from the master along the route, and back if it must be.

    With the master at the end of each round, as many as there are devices, a round.
    """
    return sum(a != b for a, b in itertools.pairwise([0, *route, 0]))
