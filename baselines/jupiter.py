"""Jupiter (arXiv 2504.08242): a prompt passes a pipeline in chunks, so that all devices work.

A chunk goes to the next device while the one behind it is computed; decoding is the pipeline's. How
many chunks, how long each is and who has which layers is planned (`jupiter_plan.py`), or set. What
the paper has besides changes the text (Medusa's heads, outlines) and is left out. Everything is
held in memory. Runs on the same blocks and runtime as the TPI engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from baselines.jupiter_plan import (
    MOST_CHUNKS,
    PromptCuts,
    StageCost,
    equal_lengths,
    plan_layers,
    prompt_s,
)
from baselines.layer_planners import OF_PROFILES, PLANNERS, Layers, Part, stages_of, too_much
from baselines.stages import pipeline_steps, run_stages
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import BYTES_PER_VALUE, ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import DoesNotFit, Plan, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.contract.system import System
from tpi_bench.engine.budget import earlier_bytes, seen_bytes
from tpi_bench.engine.plans import layer_chain
from tpi_bench.engine.wire import check_wire, hidden_bytes, wire_bytes, wire_setting, wire_words

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import Runtime

CHUNKINGS = ("equal", "planned")
_TRIED_CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, MOST_CHUNKS)


@dataclass(frozen=True, kw_only=True)
class JupiterSystem(System):
    """`system=jupiter`."""

    name: str = setting("jupiter", "how rows call it")
    chunks: Any = setting(
        "auto",
        "pieces that a prompt passes the devices in; auto: as many as are planned to be fastest",
        ("auto", "1, 2, ..."),
    )
    lengths: str = setting(
        "planned",
        "of the pieces: equal, or planned so that all take alike, later ones shorter",
        CHUNKINGS,
    )
    planner: str = setting(
        "jupiter",
        "who gets how many layers: jupiter: for a prompt in pieces; the others are those of "
        "system=pipeline",
        ("jupiter", *PLANNERS),
    )
    wire: str = wire_setting()

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

    def __post_init__(self) -> None:
        check_wire(self.wire)
        _ = self._given_chunks
        for name, known in (("lengths", CHUNKINGS), ("planner", ("jupiter", *PLANNERS))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"system.{name}={value} is unknown; choose one of {', '.join(known)}"
                )

    @property
    def label(self) -> str:
        return "Jupiter" if self.name == "jupiter" else self.name

    @property
    def variant(self) -> str:
        words = [
            "" if self._given_chunks is None else f"chunks {self.chunks}",
            "" if self.lengths == "planned" else self.lengths,
            "" if self.planner == "jupiter" else self.planner,
            wire_words(self.wire),
        ]
        return " ".join(word for word in words if word)

    @property
    def needs_profiles(self) -> bool:
        """Its plans want to know what devices can do."""
        is_planned = self.lengths == "planned" or self._given_chunks is None
        return is_planned or self.planner == "jupiter" or self.planner in OF_PROFILES

    @property
    def _given_chunks(self) -> int | None:
        """None for `auto`."""
        chunks = self.chunks
        if str(chunks).lower() == "auto":
            return None
        if isinstance(chunks, int) and chunks is not True and chunks >= 1:
            return chunks
        raise ValueError(f"system.chunks={chunks} must be a whole number of at least 1, or auto")

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        layers = Layers(
            config=config,
            site=site,
            wire=self.wire,
            streams=False,
            num_layers=config.num_layers,
        )
        plan = PLANNERS.get(self.planner, self._planned)
        return layer_chain(config, stages_of(plan(layers)), site.num_devices)

    def _planned(self, layers: Layers) -> list[Part]:
        """For a prompt as long as all that is planned for."""
        site = layers.site
        costs = [
            StageCost(config=layers.config, weights=site.weights, profile=profile)
            for profile in site.profiles
        ]
        moves_s = layers.moves_s()
        hop_s = max((max(row) for row in moves_s), default=0.0)
        given, length = self._given_chunks, site.num_positions
        tried = [n for n in ([given] if given else _TRIED_CHUNKS) if n <= length] or [1]
        found = [
            plan_layers(
                [cost.layer_s(-(-length // count), length // 2) for cost in costs],
                layers.rooms(),
                layers.num_layers,
                count,
                hop_s,
            )
            for count in tried
        ]
        plans = [plan for plan in found if plan is not None]
        if not plans:
            raise DoesNotFit(too_much(layers))
        return min(plans, key=lambda plan: plan[1])[0]

    def traffic(self, job: Job) -> Traffic:
        assert job.plan is not None
        steps = pipeline_steps(len(job.plan.chain))
        nbytes = steps * hidden_bytes(job, self.wire)
        return Traffic(latencies=steps, serial_bytes=nbytes, all_bytes=nbytes)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        cut = functools.lru_cache(functools.partial(self.cut, job))
        longest = max(cut(job.request.most_new, 0))
        if longest < job.request.most_new and not earlier_bytes(job, rt.rank):
            rt.hold("earlier", seen_bytes(job, rt.rank, longest))
        return run_stages(rt, job, self.wire, output, cut)

    def cut(self, job: Job, num_new: int, position: int) -> Sequence[int]:
        """Lengths of the pieces that a step passes in; one position is one."""
        assert job.plan is not None
        given = self._given_chunks
        if num_new == 1 or given == 1 or len(job.plan.chain) == 1:
            return (num_new,)
        if given is not None and self.lengths == "equal":
            return tuple(equal_lengths(num_new, given))
        stages = _stages(job, position)
        tried = [given] if given else [n for n in _TRIED_CHUNKS if n <= num_new]
        hop_s = functools.partial(_hop_s, job, self.wire)
        if self.lengths == "equal":
            ways = [equal_lengths(num_new, count) for count in tried]
        else:
            slowest = max(stages, key=lambda stage: stage(num_new, 0))
            cuts = PromptCuts(num_new, slowest)
            ways = [cuts.lengths(count) for count in tried]
        return min(ways, key=lambda lengths: prompt_s(stages, lengths, hop_s))


def _stages(job: Job, position: int) -> list[Callable[[int, int], float]]:
    """Seconds of each stage for a piece, by its length and how many of the step are before it."""
    assert job.plan is not None
    found: list[Callable[[int, int], float]] = []
    for rank in job.plan.chain:
        profile = job.profiles[rank] if job.profiles else job.host
        assert profile is not None
        cost = StageCost(config=job.config, weights=job.weights, profile=profile)
        count = sum(shard.kind == "attn" for shard in job.plan.shards[rank])

        def stage(length: int, past: int, cost: StageCost = cost, count: int = count) -> float:
            return count * cost.layer_s(length, position + past)

        found.append(stage)
    return found


def _hop_s(job: Job, wire: str, length: int) -> float:
    """A message of so many positions, alone on its link."""
    values = length * job.config.hidden
    nbytes = wire_bytes(wire, values, BYTES_PER_VALUE[job.dtype])
    return (job.network.one_way_ns + job.network.transfer_ns(nbytes)) / 1e9
