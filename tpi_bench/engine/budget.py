"""What a device keeps and what it streams within the memory it has: `system.window=auto`.

A token reads what is not kept, so nearly all of the memory is used to keep. Of the rest the largest
block and some read-ahead are held at once (`placement.py`). Two ways to choose what stays:
`balanced`, where every layer keeps the same matrices, the smallest first, so that reads are spread
evenly over a token (FlexInfer, arXiv 2503.03777), and one more in evenly spread layers; and
`blocks`, whole blocks in evenly spread layers, FFN blocks first. Of an input embedding that does
not stay only the asked rows are read (`look_up.py`). The plan follows from the job alone: launcher,
limits and device make it anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tpi_bench.contract.blocks import PAGE, BlockFile
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import BYTES_PER_VALUE, FEW, TILE_VALUES, ModelConfig
from tpi_bench.contract.plan import DoesNotFit, Shard
from tpi_bench.contract.system import Streaming
from tpi_bench.engine.look_up import look_up_bytes
from tpi_bench.engine.placement import place_at_ends

KEEPS = ("balanced", "blocks")

# Reads that a disk wants to have in flight, and what it brings while a block is computed: that
# reads the block from memory at least so many times as fast as the disk does.
_IN_FLIGHT_BYTES = 32 << 20
_MEMORY_TO_DISK = 8
# What is read ahead is not kept: at most these parts of the memory, and of what a token reads.
_AHEAD_SHARE = 16
_AHEAD_OF_READS = 4
_SPARE_SHARE = 64  # of the memory: page tables, rounding to huge pages, small tensors
_SCRATCH = 2  # times the activations: what the allocator does not give back between blocks

# A ladder of what may be kept beyond what is kept already: (block, bytes kept of it) in each layer.
Rung = list[tuple[int, int]]


def within_memory(
    job: Job,
    rank: int,
    keep: str,
    num_buffers: int,
    planner: Callable[[Sequence[BlockFile], str, int], Planner] | None = None,
) -> Streaming:
    """The plan of a device that receives into so many hidden states of a step's positions.

    `planner` lays out what is streamed, unless it comes as `Planner` has it, block after block.

    Raises ValueError when nothing bounds its memory, DoesNotFit when that is too small.
    """
    free = job.free_of(rank)
    if math.isinf(free):
        raise ValueError(
            "system.window=auto needs to know how much memory a device has: set device.memory_mb, "
            "or system.window to off or a number of blocks"
        )
    num_rows = job.request.most_new
    buffers = num_buffers * num_rows * job.config.hidden * BYTES_PER_VALUE[job.dtype]
    others = other_bytes(job, rank) + draft_weight_bytes(job, rank)
    room = int(free) - int(free) // _SPARE_SHARE - others - buffers
    choice = (planner or Planner)(job.blocks[rank], keep, num_rows)
    plan = choice.plan(room)
    if plan is None:
        lacking = (choice.least_room() - room) * _SPARE_SHARE / (_SPARE_SHARE - 1)
        least = job.memory_of(rank) + lacking
        given, enough = _megabytes(job.memory_of(rank)), _megabytes(least)
        raise DoesNotFit(
            f"system.window=auto: {job.memory_setting(rank, given)} is too little "
            f"for the largest block of device {rank} beside its KV cache, activations and buffers; "
            f"give it at least {job.memory_setting(rank, enough)}, or try narrower "
            "weights (model.weights) or more devices"
        )
    return plan


def other_bytes(job: Job, rank: int) -> int:
    """What the device holds beside weights: KV cache and activations, of a draft model too."""
    assert job.plan is not None  # it has blocks
    shards, itemsize = job.plan.shards[rank], BYTES_PER_VALUE[job.dtype]
    cache = cache_bytes(job, rank)
    num_new = job.request.most_new
    num_back = job.request.most_drafted + 1
    activations = activation_bytes(job.config, shards, num_new, itemsize, num_back)
    own = cache + _SCRATCH * activations + earlier_bytes(job, rank) + tile_bytes(job)
    return own + (other_bytes(job.draft, 0) if job.draft and rank == 0 else 0)


def draft_weight_bytes(job: Job, rank: int) -> int:
    """Weights of a draft model, which the master holds beside its own."""
    if job.draft is None or rank:
        return 0
    return Streaming.of_all(job.draft.blocks[0]).kept_bytes


def earlier_bytes(job: Job, rank: int) -> int:
    """What pieces of a prompt take besides, as they see earlier positions: which of them (T, S),
    and keys and values (S, d) for each of a layer's own query heads. A whole prompt has none, nor
    have the few positions that a kernel takes.
    """
    request = job.request
    is_whole = request.most_fed == len(request.prompt_ids) and not request.positions
    if is_whole and request.most_drafted < FEW:
        return 0
    return seen_bytes(job, rank, request.most_new)


def seen_bytes(job: Job, rank: int, num_new: int) -> int:
    """What a piece of so many positions takes to see earlier ones."""
    if job.plan is None:
        return 0
    heads = max((shard.heads[1] - shard.heads[0] for shard in job.plan.shards[rank]), default=0)
    values = num_new + 2 * heads * job.config.head_dim
    return job.request.length * values * BYTES_PER_VALUE[job.dtype]


def cache_bytes(job: Job, rank: int) -> int:
    """The device's KV caches."""
    assert job.plan is not None
    kv_heads = sum(shard.kv_heads[1] - shard.kv_heads[0] for shard in job.plan.shards[rank])
    values = 2 * kv_heads * job.config.head_dim * job.request.length
    return values * BYTES_PER_VALUE[job.dtype]


def tile_bytes(job: Job) -> int:
    """What a part of a weight takes in the type that a prompt is computed in, if that is another.

    Such a tile is in memory of its own, which all weights share. Smaller models have smaller ones.
    """
    if job.weights == job.dtype or job.request.most_new == 1:
        return 0
    config = job.config
    largest = max(config.hidden * config.intermediate * 2, config.hidden * config.vocab)
    return min(TILE_VALUES, largest) * BYTES_PER_VALUE[job.dtype]


def activation_bytes(
    config: ModelConfig, shards: Sequence[Shard], num_new: int, itemsize: int, num_back: int = 1
) -> int:
    """Most that a device's hidden states and temporary results take at once, in prefill.

    The state, its norm and the partial sum (T, h) each, and the largest of a block's inner results:
    queries, keys, values and the mixed heads, or gate, up, the activated gate and the product. The
    master's logits (n, v) in fp32, of `num_back` positions, come on top.
    """
    inner = 0
    for shard in shards:
        heads, kv_heads = shard.heads[1] - shard.heads[0], shard.kv_heads[1] - shard.kv_heads[0]
        columns = shard.columns[1] - shard.columns[0]
        inner = max(inner, 2 * (heads + kv_heads) * config.head_dim, 4 * columns)
    is_master = any(shard.kind == "output" for shard in shards)
    values = num_new * (3 * config.hidden + inner)
    return values * itemsize + (4 * num_back * config.vocab if is_master else 0)


def cuts_of(block: BlockFile) -> list[int]:
    """How much of a block may be kept: up to the end of each of its matrices.

    A matrix's numbers and its scales stay together; only whole pages can be read.
    """
    begins = [
        view.begin
        for name, view in block.tensors.items()
        if len(view.shape) == 2 and not name.endswith(".scales") and view.begin % PAGE == 0
    ]
    return [*sorted(begins)[1:], block.nbytes]


@dataclass(frozen=True)
class _Cost:
    """Bytes that a choice holds, and that it reads for a token."""

    held: int
    streamed: int


class Planner:
    """A device's blocks, and how much of each may be kept. `kept[i]` are bytes of block i."""

    def __init__(self, blocks: Sequence[BlockFile], keep: str, num_rows: int) -> None:
        self._blocks = blocks
        self._num_rows = num_rows
        self._has_ends = bool(blocks) and blocks[0].kind == "input"
        self._is_tied = self._has_ends and blocks[0].path == blocks[-1].path
        self._rungs = _matrix_rungs(blocks) if keep == "balanced" else _block_rungs(blocks)
        self._is_balanced = keep == "balanced"

    def plan(self, room: int) -> Streaming | None:
        """The choice that reads least within `room`; None where there is none."""
        everything = [block.nbytes for block in self._blocks]
        if self._fits(everything, room):
            return Streaming.of_all(self._blocks)
        choices = [kept for first in self._starts() if (kept := self._climb(first, room))]
        if not choices:
            return None
        return self._streaming(min(choices, key=lambda kept: self._cost(kept, room).streamed), room)

    def least_room(self) -> int:
        """The least `room` that there is a plan for, to a page."""
        too_little, enough = 0, sum(block.nbytes for block in self._blocks)
        while enough - too_little > PAGE:
            middle = (too_little + enough) // 2
            if self.plan(middle) is None:
                too_little = middle
            else:
                enough = middle
        return enough

    def _starts(self) -> Iterator[list[int]]:
        """With the output head kept, and without."""
        nothing = [0] * len(self._blocks)
        if self._has_ends:
            yield self._with(nothing, [(len(nothing) - 1, self._blocks[-1].nbytes)])
        yield nothing

    def _climb(self, kept: list[int], room: int) -> list[int] | None:
        """As much as fits beyond `kept`, rung by rung; None where not even that does."""
        if not self._fits(kept, room):
            return None
        for rung in self._rungs:
            count = self._most_of(rung, kept, room)
            kept = self._with(kept, _spread(rung, count))
            if count < len(rung) and self._is_balanced:
                break
        return kept

    def _most_of(self, rung: Rung, kept: list[int], room: int) -> int:
        """How many of a rung, evenly spread, fit beside what is kept."""
        step = min((cut - kept[index] for index, cut in rung), default=0)
        spare = room - sum(kept)
        most = min(len(rung), spare // step) if step > 0 else len(rung)
        counts = range(max(0, most), 0, -1)
        fitting = (n for n in counts if self._fits(self._with(kept, _spread(rung, n)), room))
        return next(fitting, 0)

    def _with(self, kept: list[int], more: Rung) -> list[int]:
        found = list(kept)
        for index, cut in more:
            found[index] = max(found[index], cut)
        if self._is_tied:
            first, last = found[0], self._blocks[-1].nbytes
            found[0] = last if found[-1] == last else first  # one file serves both
        return found

    def _fits(self, kept: Sequence[int], room: int) -> bool:
        return self._cost(kept, room).held <= room

    def _cost(self, kept: Sequence[int], room: int) -> _Cost:
        held = sum(kept) + self._place(kept, room)[1]
        if self._has_ends and not kept[0]:
            held += look_up_bytes(self._blocks[0], self._num_rows)
        elif self._is_tied:
            held -= kept[0]
        return _Cost(held, sum(self._rests(kept)))

    def _place(self, kept: Sequence[int], room: int) -> tuple[list[int], int]:
        """Where what is streamed lies, and the size of its area."""
        rests = self._rests(kept)
        return place_at_ends(rests, _ahead_bytes(rests, room))

    def _rests(self, kept: Sequence[int]) -> list[int]:
        """What is streamed of each block, of those that are."""
        rests = [
            block.nbytes - cut
            for block, cut in zip(self._blocks, kept, strict=True)
            if block.kind != "input"
        ]
        return [rest for rest in rests if rest]

    def _streaming(self, kept: Sequence[int], room: int) -> Streaming:
        parts = [block.cut(cut) for block, cut in zip(self._blocks, kept, strict=True)]
        places, area = self._place(kept, room)
        return Streaming(
            kept=tuple(first if first.nbytes else None for first, _ in parts),
            streamed=tuple(
                rest if rest.nbytes and rest.kind != "input" else None for _, rest in parts
            ),
            places=tuple(places),
            area_bytes=area,
        )


def _ahead_bytes(rests: Sequence[int], room: int) -> int:
    """What is read ahead while the largest block computes: enough that the disk never waits."""
    wanted = _IN_FLIGHT_BYTES + max(rests, default=0) // _MEMORY_TO_DISK
    most = min(room // _AHEAD_SHARE, sum(rests) // _AHEAD_OF_READS)
    return -(-min(wanted, most) // PAGE) * PAGE


def _matrix_rungs(blocks: Sequence[BlockFile]) -> list[Rung]:
    """One more matrix of every layer a rung, the smallest first."""
    found: list[Rung] = []
    for _, members in itertools.groupby(_of_layers(blocks), key=lambda i: blocks[i].layer):
        steps = []
        for index in members:
            cuts = cuts_of(blocks[index])
            sizes = [cut - before for before, cut in itertools.pairwise((0, *cuts))]
            steps += [(size, index, cut) for size, cut in zip(sizes, cuts, strict=True)]
        for number, (_, index, cut) in enumerate(sorted(steps)):
            found += [[]] * (number == len(found))
            found[number] = [*found[number], (index, cut)]
    return found


def _block_rungs(blocks: Sequence[BlockFile]) -> list[Rung]:
    """All FFN blocks, then all attention blocks."""
    of_layers = _of_layers(blocks)
    return [
        [(index, blocks[index].nbytes) for index in of_layers if blocks[index].kind == kind]
        for kind in ("ffn", "attn")
    ]


def _of_layers(blocks: Sequence[BlockFile]) -> list[int]:
    return [index for index, block in enumerate(blocks) if block.layer >= 0]


def _spread(rung: Rung, count: int) -> Rung:
    """`count` of them, evenly spread."""
    return [rung[(2 * i + 1) * len(rung) // (2 * count)] for i in range(count)]


def _megabytes(nbytes: float) -> str:
    """Rounded up: what is named must be enough."""
    digits = max(0, 3 - len(str(int(nbytes / 1e6))))
    return f"{math.ceil(nbytes / 1e6 * 10**digits) / 10**digits:g}"
