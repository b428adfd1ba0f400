"""Halda, prima.cpp's planner (arXiv 2504.08791): layers of a ring's round, and how many rounds.

A token passes the ring k times; in each round device m computes w_m layers, and k sum w_m = L. For
devices that are sorted into those whose memory is too small and those that hold all they get, the
token's latency k sum (a_m w_m + xi_m) + kappa is linear in w, so an integer linear programme a k
finds the best (HiGHS, by scipy). The sets follow from the answer, so it is asked again until they
stay. A device that is left with one layer is not worth its hop and is dropped, and all is done
anew. Pure arithmetic on CPUs; `layer_planners.py` says what devices take.

What a layer costs is the question of `objective`: `code` counts what the program itself counts,
arithmetic and disk; `paper` what is written, reads from memory and hops too. Both add up all loads
as if nobody else worked meanwhile, so another round never helps them. `overlap` is ours: what is
loaded while others work costs nothing, unless it takes longer than the round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OBJECTIVES = ("code", "paper", "overlap")


@dataclass(frozen=True, kw_only=True)
class RingDevice:
    """What a layer takes on a device: to compute, and to load; `room` are layers that it holds.

    Where it does not `stream`, it has no more than it holds.
    """

    compute_s: float
    load_s: float
    room: float
    streams: bool


@dataclass(frozen=True)
class RingPlan:
    """Layers of a round for each device, 0 where it is not used; rounds; and what a token takes,
    but for the ends of the model.
    """

    windows: tuple[int, ...]
    rounds: int
    token_s: float


# The hops of one round over the ring of these devices, in seconds.
Hops = Callable[[Sequence[int]], float]


def plan_ring(
    devices: Sequence[RingDevice],
    num_layers: int,
    hops_s: Hops,
    *,
    rounds: Sequence[int],
    overlap: bool = False,
    drops: bool = True,
) -> RingPlan | None:
    """The best of these numbers of rounds; None where the layers do not fit."""
    ranks = list(range(len(devices)))
    found: RingPlan | None = None
    while True:
        asked = [devices[rank] for rank in ranks]
        plan = _assigned(asked, num_layers, hops_s(ranks), rounds, overlap=overlap)
        if plan is None:
            return found
        windows = dict(zip(ranks, plan.windows, strict=True))
        all_windows = tuple(windows.get(rank, 0) for rank in range(len(devices)))
        found = RingPlan(all_windows, plan.rounds, plan.token_s)
        kept = [rank for rank in ranks if windows[rank] > 1 or not rank]
        if not drops or kept == ranks:
            return found
        ranks = kept


def round_counts(num_layers: int) -> list[int]:
    """Numbers of rounds that divide the layers, with two layers a round at least."""
    return [k for k in range(1, max(1, num_layers // 2) + 1) if num_layers % k == 0]


def _assigned(
    devices: Sequence[RingDevice],
    num_layers: int,
    hops_s: float,
    rounds: Sequence[int],
    *,
    overlap: bool,
) -> RingPlan | None:
    """All of these devices, with their sets asked for again until they stay."""
    own = _by_room(devices, num_layers)
    found: RingPlan | None = None
    seen = set()
    while True:
        short = tuple(d.streams and n > d.room for d, n in zip(devices, own, strict=True))
        if short in seen:
            return found
        seen.add(short)
        solve = _overlapped if overlap else _added_up
        plans = [plan for k in rounds if (plan := solve(devices, short, num_layers, hops_s, k))]
        if not plans:
            return found
        best = min(plans, key=lambda plan: plan.token_s)
        if found is not None and best.windows == found.windows and best.rounds == found.rounds:
            return best
        found = best
        own = [window * best.rounds for window in best.windows]


def _by_room(devices: Sequence[RingDevice], num_layers: int) -> list[int]:
    """To begin with: layers in proportion to memory, one at least."""
    rooms = [max(0.0, device.room) for device in devices]
    if not all(map(math.isfinite, rooms)) or not sum(rooms):
        rooms = [1.0] * len(rooms)
    return [max(1, round(room / sum(rooms) * num_layers)) for room in rooms]


def _added_up(
    devices: Sequence[RingDevice],
    short: Sequence[bool],
    num_layers: int,
    hops_s: float,
    rounds: int,
) -> RingPlan | None:
    """The published model: every load is waited for."""
    costs = [
        d.compute_s + (d.load_s if is_short else 0.0)
        for d, is_short in zip(devices, short, strict=True)
    ]
    held_s = sum(d.load_s * d.room for d, is_short in zip(devices, short, strict=True) if is_short)
    windows = _solved(costs, _bounds(devices, short, num_layers, rounds), num_layers // rounds)
    if windows is None:
        return None
    layers_s = sum(cost * window for cost, window in zip(costs, windows, strict=True))
    return RingPlan(windows, rounds, rounds * (layers_s + hops_s) - held_s)


def _overlapped(
    devices: Sequence[RingDevice],
    short: Sequence[bool],
    num_layers: int,
    hops_s: float,
    rounds: int,
) -> RingPlan | None:
    """Loads go on while others work: a round takes what all compute one after another, or what one
    device computes and loads, whichever is longer.

    A device that streams has room for one segment of what it streams, so that of its k w layers,
    of which r fit, (k w - r) / (k - 1) are loaded in each round.
    """
    if rounds == 1:
        return _added_up(devices, short, num_layers, hops_s, rounds)
    loads = []  # of a round: seconds a layer of the window, and what of them is always held
    for device, is_short in zip(devices, short, strict=True):
        each_s = device.load_s / (rounds - 1) if is_short else 0.0
        loads.append((device.compute_s + rounds * each_s, each_s * device.room if is_short else 0))
    windows = _solved(
        [device.compute_s for device in devices],
        _bounds(devices, short, num_layers, rounds),
        num_layers // rounds,
        hops_s,
        loads,
    )
    if windows is None:
        return None
    pairs = list(zip(devices, windows, strict=True))
    round_s = max(
        sum(device.compute_s * window for device, window in pairs) + hops_s,
        *(cost * window - held for (cost, held), window in zip(loads, windows, strict=True)),
    )
    return RingPlan(windows, rounds, rounds * round_s)


def _bounds(
    devices: Sequence[RingDevice], short: Sequence[bool], num_layers: int, rounds: int
) -> list[tuple[float, float]]:
    """Of each window: one layer at least; what is short has more than it holds, others do not."""
    most = num_layers // rounds
    bounds = []
    for device, is_short in zip(devices, short, strict=True):
        room = device.room / rounds
        bounds.append((max(1.0, room), most) if is_short else (1.0, min(most, room)))
    return bounds


def _solved(
    costs: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    total: int,
    least_s: float = 0.0,
    loads: Sequence[tuple[float, float]] = (),
) -> tuple[int, ...] | None:
    """Whole windows of `total` layers with the least sum of costs, or with `loads` the least of
    what is at least that sum and `least_s`, and each (cost, held): cost times window less held.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    count = len(costs)
    lower = np.array([math.ceil(low - 1e-9) for low, _ in bounds], float)
    upper = np.array([math.floor(high + 1e-9) for _, high in bounds], float)
    if (lower > upper).any() or lower.sum() > total or upper.sum() < total:
        return None
    extra = 1 if loads else 0
    whole = LinearConstraint([[1.0] * count + [0.0] * extra], total, total)
    constraints = [whole]
    goal = np.array([*costs, *[0.0] * extra])
    if loads:  # the last variable is the time of a round, in units of a typical one
        unit = max(max(costs) * total + least_s, 1e-12)
        rows = [[*(-cost / unit for cost in costs), 1.0]]
        least = [least_s / unit]
        for number, (cost, held) in enumerate(loads):
            rows.append([*(-cost / unit if i == number else 0.0 for i in range(count)), 1.0])
            least.append(-held / unit)
        constraints.append(LinearConstraint(rows, least, np.inf))
        goal = np.array([*[0.0] * count, 1.0])
        lower, upper = np.append(lower, 0.0), np.append(upper, np.inf)
    else:
        goal = goal / max(goal.max(), 1e-12)
    found = milp(
        goal,
        integrality=[1] * count + [0] * extra,
        bounds=Bounds(lower, upper),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if not found.success:
        return None
    return tuple(round(value) for value in found.x[:count])
