"""What a rank of a case does, on either side: the engine's collectives, Galaxy's ring, or flows.

`empty(rows, columns)` makes a tensor of the side that runs it, of four-byte values. What tensors
hold is nobody's matter here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from baselines.galaxy import _Ring, split_positions
from tests.network_check.cases import Case
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.wire import AS_COMPUTED

BYTES_PER_VALUE = 4
NUM_BLOCKS = 2
Empty = Callable[[int, int], Any]


def run_rank(rt: Any, case: Case, empty: Empty) -> int:
    """Returns when the rank is done, in ns."""
    for flow in sorted((f for f in case.flows if f.src == rt.rank), key=lambda f: f.start_ns):
        if flow.start_ns > rt.now():
            rt.sleep(flow.start_ns - rt.now())
        rt.send(flow.dst, empty(1, flow.nbytes // BYTES_PER_VALUE))
    if case.program == "flows" or rt.rank >= case.num_devices:
        return rt.now()
    members = _Members(rt, case.num_devices)
    count = case.message_bytes // BYTES_PER_VALUE
    for _ in range(case.num_rounds):
        rt.sleep((1 + rt.rank) * case.stagger_ns)
        if case.program == "galaxy":
            _galaxy(members, case.num_devices, count, empty)
        else:
            COLLECTIVES[case.program].run(members, empty(1, count))
    return rt.now()


class _Members:
    """A runtime as those see it who take part: there may be more devices than these."""

    def __init__(self, rt: Any, world_size: int) -> None:
        self.rank, self.world_size = rt.rank, world_size
        self.send, self.recv, self.compute = rt.send, rt.recv, rt.compute


def _galaxy(rt: Any, num_devices: int, count: int, empty: Empty) -> None:
    """Two blocks on one tile of one position a device, `count` values wide."""
    tile = empty(1, count)
    model = SimpleNamespace(
        config=SimpleNamespace(hidden=count),
        dtype=tile.dtype,
        begin=lambda num_new, position: None,
        layer_blocks=[(index, _Block()) for index in range(NUM_BLOCKS)],
        window=SimpleNamespace(acquire=lambda index: None, release=lambda index: None),
    )
    _Ring(rt, model, AS_COMPUTED).layers(tile, split_positions(num_devices, num_devices), 0)


class _Block:
    """A block that leaves all shapes as they are."""

    def key(self, num_new: int, position: int) -> tuple[int, int]:
        return num_new, position

    def norm(self, x: Any, weights: None) -> Any:
        return x

    def enter(self, x: Any, weights: None) -> Any:
        return x

    def mix(self, x: Any, position: int) -> Any:
        return x

    def leave(self, x: Any, weights: None) -> Any:
        return x.new_empty(x.shape)
