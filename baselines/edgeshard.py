"""EdgeShard's planner (arXiv 2405.14371): which devices take part in a pipeline, and which layers.

A dynamic programme over (layers placed, devices used, last device) with the latency of one token as
the objective: the time of every layer where it is, every move of the hidden state, and the way back
to the master, which starts and ends the token. A device takes consecutive layers, no more than its
memory holds, and is passed once. Exact, at a price that doubles with each device. Pure arithmetic;
`pipeline.py` runs what it plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpi_bench.contract.plan import DoesNotFit

Stage = tuple[int, int, int]  # rank, first layer, one past the last
State = tuple[int, int]  # devices used, one bit each; the last of them

MOST_DEVICES = 14


def plan_stages(
    layer_s: Sequence[Sequence[float]],
    layer_bytes: Sequence[int],
    room_bytes: Sequence[float],
    transfer_s: Sequence[Sequence[float]],
) -> tuple[list[Stage], float]:
    """The stages in the order of the layers, rank 0 first, and what they and their moves take.

    `layer_s[rank][layer]` and `transfer_s[from][to]` are seconds. Raises DoesNotFit when the layers
    do not.
    """
    num_devices, num_layers = len(layer_s), len(layer_bytes)
    if num_devices > MOST_DEVICES:
        raise ValueError(
            f"testbed.num_devices={num_devices}: system.planner=edgeshard looks at every set of "
            f"devices and takes at most {MOST_DEVICES}; use system.planner=proportional"
        )
    costs = [
        _segment_costs(times, layer_bytes, room)
        for times, room in zip(layer_s, room_bytes, strict=True)
    ]
    best, came = _best_ways(costs, transfer_s)
    totals = {
        state: times[num_layers] + (transfer_s[state[1]][0] if state[1] else 0.0)
        for state, times in best.items()
    }
    state = min(totals, key=lambda s: (totals[s], s))
    if not np.isfinite(totals[state]):
        raise DoesNotFit(
            f"{sum(layer_bytes) / 1e9:.2f} GB of layers do not fit in the devices' memory "
            f"({', '.join(f'{max(0.0, room) / 1e9:.2f}' for room in room_bytes)} GB); use a window "
            "(system.window=2), more devices or more memory"
        )
    return _trace(state, num_layers, best, came, costs, transfer_s), float(totals[state])


def _best_ways(
    costs: Sequence[np.ndarray], transfer_s: Sequence[Sequence[float]]
) -> tuple[dict[State, np.ndarray], dict[State, list[int]]]:
    """What n layers on the devices `used` (a bit each) take, and how that came about.

    best[used, last][n]: seconds, where the last of the layers are on `last`. came[used, last][n]:
    the device before `last`, where n layers are placed before it.
    """
    num_devices = len(costs)
    start = np.full(len(costs[0]), np.inf)
    start[0] = 0.0
    best = {(1, 0): (start[:, None] + costs[0]).min(axis=0)}
    came: dict[State, list[int]] = {}
    for used in range(1, 1 << num_devices, 2):  # the master is always in it
        for last in range(1, num_devices):
            if not used >> last & 1:
                continue
            before = used & ~(1 << last)
            froms = [i for i in range(num_devices) if (before, i) in best]
            if not froms:
                continue
            reach = np.array([best[before, i] + transfer_s[i][last] for i in froms])
            came[used, last] = [froms[k] for k in reach.argmin(axis=0)]
            best[used, last] = (reach.min(axis=0)[:, None] + costs[last]).min(axis=0)
    return best, came


def _segment_costs(times: Sequence[float], nbytes: Sequence[int], room: float) -> np.ndarray:
    """[a, b]: seconds for layers a to b - 1 on one device; infinite when empty or too large."""
    seconds = np.concatenate(([0.0], np.cumsum(times)))
    held = np.concatenate(([0.0], np.cumsum(nbytes)))
    costs = seconds[None, :] - seconds[:, None]
    is_allowed = (held[None, :] - held[:, None] <= room) & np.triu(np.ones_like(costs, bool), 1)
    return np.where(is_allowed, costs, np.inf)


def _trace(
    state: State,
    end: int,
    best: dict[State, np.ndarray],
    came: dict[State, list[int]],
    costs: Sequence[np.ndarray],
    transfer_s: Sequence[Sequence[float]],
) -> list[Stage]:
    """Back from the last stage to the first."""
    stages: list[Stage] = []
    while state != (1, 0):
        used, last = state
        before = used & ~(1 << last)
        reach = [best[before, i][a] + transfer_s[i][last] for a, i in enumerate(came[state])]
        first = int((np.array(reach) + costs[last][:, end]).argmin())
        stages.append((last, first, end))
        state, end = (before, came[state][first]), first
    return [(0, 0, end), *reversed(stages)]
