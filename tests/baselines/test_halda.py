"""Halda against every way there is, and against what its formulas say of small rings."""

from __future__ import annotations

import itertools
import random

import pytest

from baselines.halda import RingDevice, RingPlan, plan_ring, round_counts


def ways(count: int, total: int):
    """All windows of so many layers, one at least on each device."""
    for cuts in itertools.combinations(range(1, total), count - 1):
        ends = [0, *cuts, total]
        yield tuple(b - a for a, b in itertools.pairwise(ends))


def added_up_s(devices, windows, rounds: int, hop_s: float) -> float:
    """Every load is waited for: what a device has more than it holds, it loads for each token."""
    total = rounds * hop_s
    for device, window in zip(devices, windows, strict=True):
        own = rounds * window
        total += own * device.compute_s
        total += max(0.0, own - device.room) * device.load_s
    return total


def overlapped_s(devices, windows, rounds: int, hop_s: float) -> float:
    """The longer of what all compute and what one computes and loads, a round."""
    if rounds == 1:
        return added_up_s(devices, windows, rounds, hop_s)
    times = [sum(d.compute_s * w for d, w in zip(devices, windows, strict=True)) + hop_s]
    for device, window in zip(devices, windows, strict=True):
        load = max(0.0, rounds * window - device.room) / (rounds - 1) * device.load_s
        times.append(device.compute_s * window + load)
    return rounds * max(times)


def drawn(draw: random.Random, count: int) -> list[RingDevice]:
    return [
        RingDevice(
            compute_s=draw.uniform(1, 5),
            load_s=draw.uniform(1, 20),
            room=draw.uniform(1, 9),
            streams=True,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_an_answer_is_the_best_of_its_sets(seed: int, overlap: bool) -> None:
    """Of all windows and rounds in which the same devices are short of memory, none is better, and
    its time is what the formulas say.
    """
    draw = random.Random(seed)
    count, num_layers, hop_s = draw.choice([2, 3]), 12, draw.uniform(0, 4)
    devices, counts = drawn(draw, count), round_counts(num_layers)
    cost = overlapped_s if overlap else added_up_s
    found = plan_ring(
        devices, num_layers, lambda ranks: hop_s, rounds=counts, overlap=overlap, drops=False
    )
    assert found is not None
    assert found.token_s == pytest.approx(cost(devices, found.windows, found.rounds, hop_s))

    def short(windows, rounds: int) -> list[bool]:
        return [rounds * w > d.room for w, d in zip(windows, devices, strict=True)]

    others = [
        cost(devices, windows, k, hop_s)
        for k in counts
        if num_layers // k >= count
        for windows in ways(count, num_layers // k)
        if short(windows, k) == short(found.windows, found.rounds)
    ]
    assert found.token_s <= min(others) * (1 + 1e-9)


@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_in_memory_goes_to_the_fastest(overlap: bool) -> None:
    """9 of 10 layers fit on the fast one; all loads are dear, so the master has the last one."""
    slow = RingDevice(compute_s=5.0, load_s=50.0, room=4.0, streams=True)
    fast = RingDevice(compute_s=1.0, load_s=50.0, room=9.0, streams=True)
    found = plan_ring([slow, fast], 10, lambda ranks: 0.5, rounds=[1], overlap=overlap)
    assert found == RingPlan((1, 9), 1, pytest.approx(5 + 9 + 0.5))


def test_a_device_with_one_layer_is_dropped() -> None:
    """All 8 layers fit on the master, whose rounds are the faster without hops."""
    master = RingDevice(compute_s=1.0, load_s=9.0, room=8.0, streams=True)
    weak = RingDevice(compute_s=3.0, load_s=9.0, room=8.0, streams=True)

    def hops_s(ranks) -> float:
        return 0.0 if len(ranks) == 1 else float(len(ranks))

    found = plan_ring([master, weak, weak], 8, hops_s, rounds=[1])
    assert found == RingPlan((8, 0, 0), 1, pytest.approx(8.0))
    kept = plan_ring([master, weak, weak], 8, hops_s, rounds=[1], drops=False)
    assert kept == RingPlan((6, 1, 1), 1, pytest.approx(6 + 3 + 3 + 3))


def test_who_is_needed_is_not_dropped() -> None:
    """Without the second the layers would not fit, so the plan with it stands."""
    held = RingDevice(compute_s=1.0, load_s=1.0, room=4.0, streams=False)
    found = plan_ring([held, held], 5, lambda ranks: 0.0, rounds=[1])
    assert found is not None
    assert sorted(found.windows) == [1, 4]


def test_rounds_pay_where_loads_are_hidden() -> None:
    """Two alike, of 12 layers each holds 4. Added up, they load 4 layers a token, whatever the
    rounds and the division; hidden, a round of k takes 12 / k computed, and each computes its 6 / k
    and loads 2 / (k - 1): in 3 rounds nobody waits, in 2 each waits for 1 s of 7.
    """
    device = RingDevice(compute_s=1.0, load_s=2.0, room=4.0, streams=True)
    devices, hops_s = [device, device], lambda ranks: 0.1
    added = plan_ring(devices, 12, hops_s, rounds=round_counts(12))
    assert added is not None
    assert (added.rounds, added.token_s) == (1, pytest.approx(12 + 4 * 2 + 0.1))
    hidden = plan_ring(devices, 12, hops_s, rounds=round_counts(12), overlap=True)
    assert hidden == RingPlan((2, 2), 3, pytest.approx(3 * (4 + 0.1)))


def test_what_cannot_be_held_does_not_fit() -> None:
    held = RingDevice(compute_s=1.0, load_s=1.0, room=3.0, streams=False)
    assert plan_ring([held, held], 8, lambda ranks: 0.0, rounds=[1, 2]) is None
    found = plan_ring([held, held], 6, lambda ranks: 0.0, rounds=[1, 3])
    assert found is not None
    assert found.windows in ((3, 3), (1, 1))


def test_rounds_divide_the_layers() -> None:
    assert round_counts(12) == [1, 2, 3, 4, 6]
    assert round_counts(7) == [1]
    assert round_counts(1) == [1]
