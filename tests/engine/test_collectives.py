"""Every collective: right sums, the same bits on every rank and in every run, closed forms.

Packed payloads: what an allreduce is off by stays within what its packings may each be off by.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.local_runtime import LocalRuntime, run_ranks
from tpi_bench.engine.collectives import (
    COLLECTIVES,
    Collective,
    by_name,
    collective_by_name,
    tree_groups,
)
from tpi_bench.engine.packing import make_wire


def partials(world_size: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(world_size * 100 + count)
    return [torch.randn(3, count, generator=generator) * 10**rank for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize("count", [1, 7, 64])
def test_sum_and_bits(name: str, world_size: int, count: int) -> None:
    inputs = partials(world_size, count)

    def program(rt: LocalRuntime) -> torch.Tensor:
        return COLLECTIVES[name].run(rt, inputs[rt.rank].clone())

    first = run_ranks(world_size, program)
    expected = sum(part.double() for part in inputs)
    for result in first:
        assert torch.equal(result, first[0])
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5 * 10**world_size)
    late = run_ranks(world_size, program, delay=lambda src, dst: 0.003 * ((src + 1) % world_size))
    assert all(torch.equal(a, b) for a, b in zip(first, late, strict=True))


@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
@pytest.mark.parametrize("name", ["star", "tree"])
def test_a_last_sum_comes_to_the_hub_alone(name: str, world_size: int) -> None:
    """It is the same there, and half of the messages are sent."""
    record, inputs = COLLECTIVES[name], partials(world_size, 64)

    def program(rt: LocalRuntime) -> torch.Tensor:
        assert record.to_hub is not None
        sums = record.to_hub(rt, inputs[rt.rank].clone())
        rt.send((rt.rank + 1) % world_size, torch.tensor([float(rt.rank)]))
        follows = torch.empty(1)  # nothing else is on its way
        rt.recv((rt.rank - 1) % world_size, follows)
        assert follows == (rt.rank - 1) % world_size
        return sums

    total = run_ranks(world_size, program)[0]
    assert torch.equal(total, reduced(name, "auto", inputs)[0])


def in_turn(parts: list[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.add, parts)


def summed_as_defined(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The order of the sums written out; every rank's partial sum is flat."""
    if name == "tree":
        heads = [in_turn([parts[rank] for rank in group]) for group in tree_groups(len(parts))]
        return in_turn([parts[0], *heads])
    if name == "ring":
        size = len(parts)
        chunks = [part.tensor_split(size) for part in parts]
        turned = [[(c + i) % size for i in range(size)] for c in range(size)]
        return torch.cat(
            [in_turn([chunks[rank][c] for rank in turned[c]]) for c in range(len(parts))]
        )
    assert name in ("star", "direct"), f"say how {name} adds up"
    return in_turn(parts)


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_as_computed_the_bits_are_those_of_the_sums(name: str, world_size: int) -> None:
    inputs = partials(world_size, 72)
    expected = summed_as_defined(name, [part.view(-1) for part in inputs]).view(3, 72)
    for result in reduced(name, "auto", inputs):
        assert torch.equal(result, expected)


def reduced(name: str, wire: str, inputs: list[torch.Tensor], **delay: object) -> list:
    """What each rank has afterwards. The wire has served another payload before."""
    record, dtype = COLLECTIVES[name], inputs[0].dtype

    def program(rt: LocalRuntime) -> torch.Tensor:
        own = inputs[rt.rank]
        end = make_wire(rt, wire, dtype, own.numel(), record.messages(rt.world_size))
        record.run(rt, own[:1].clone(), end)
        return record.run(rt, own.clone(), end)

    return run_ranks(len(inputs), program, **delay)


class Bounded:
    """A sum (g, 32) and how far off a rank may have it, in each group (g, 1)."""

    def __init__(self, exact: torch.Tensor, off: torch.Tensor | float = 0.0) -> None:
        self.exact, self.off = exact, off

    def __add__(self, other: Bounded) -> Bounded:
        """And a rounding in fp32."""
        found = Bounded(self.exact + other.exact, self.off + other.off)
        return Bounded(found.exact, found.off + found.largest() * 2.0**-24)

    def largest(self) -> torch.Tensor:
        return self.exact.abs().amax(1, keepdim=True) + self.off

    def packed(self, wire: str) -> Bounded:
        """Half a step of the group: max|x| / 254, its scale rounded up to 2**-9 more.

        In fp16 half of the last of 11 bits.
        """
        more = self.largest() * (2.0**-11 if wire == "float16" else (1 + 2.0**-9) / 254) + 2.0**-23
        return Bounded(self.exact, self.off + more)


def bounded(name: str, wire: str, parts: list[Bounded]) -> Bounded:
    """An allreduce of `parts`, packed where it packs."""
    packed = [part.packed(wire) for part in parts]
    if name == "direct":
        return sum(packed[1:], packed[0])
    if name == "star":
        return sum(packed[1:], parts[0]).packed(wire)
    if name == "tree":
        heads = [
            sum([packed[leaf] for leaf in leaves], parts[head]).packed(wire)
            for head, *leaves in tree_groups(len(parts))
        ]
        return sum(heads, parts[0]).packed(wire)
    assert name == "ring", f"say what {name} packs"
    # Its chunks go round different ways; whichever a group is in, it is within this.
    ways = []
    for first in range(len(parts)):
        order = [parts[(first + i) % len(parts)] for i in range(len(parts))]
        ways.append(functools.reduce(lambda done, part: done.packed(wire) + part, order))
    largest = [way.packed(wire).off for way in ways]
    return Bounded(ways[0].exact, functools.reduce(torch.maximum, largest))


def in_groups(values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(-1).double()
    return F.pad(flat, (0, -flat.numel() % 32)).view(-1, 32)


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize("count", [1, 7, 64, 72, 200])
@pytest.mark.parametrize("wire", ["float16", "q8"])
def test_packed_all_ranks_have_the_same_bits_within_the_bound(
    wire: str, count: int, name: str, world_size: int
) -> None:
    inputs = partials(world_size, count)
    first = reduced(name, wire, inputs)
    for result in first:
        assert torch.equal(result, first[0])
    late = reduced(name, wire, inputs, delay=lambda src, dst: 0.001 * ((src + 1) % world_size))
    assert all(torch.equal(a, b) for a, b in zip(first, late, strict=True))
    bound = bounded(name, wire, [Bounded(in_groups(part)) for part in inputs])
    error = (in_groups(first[0]) - bound.exact).abs()
    assert (error <= bound.off).all()
    assert error.max() > 0


@pytest.mark.parametrize("name", COLLECTIVES)
def test_packed_the_error_is_no_smaller_than_said(name: str) -> None:
    """Of many values, some are off by nearly half a step of the last packing."""
    inputs = [torch.randn(4, 4096, generator=torch.Generator().manual_seed(r)) for r in range(3)]
    result = in_groups(reduced(name, "q8", inputs)[0])
    exact = sum(in_groups(part) for part in inputs)
    steps = result.abs().amax(1, keepdim=True) / 127
    assert 0.4 < ((result - exact).abs() / steps).max() < 3
    assert ((result - exact).abs() / steps).mean() < 0.7


@pytest.mark.parametrize(
    ("wire", "big", "small"), [("float16", 2.0**15, 2.0**-11), ("q8", 5e6, 0.1)]
)
def test_packed_parts_are_added_in_rank_order(wire: str, big: float, small: float) -> None:
    """(p0 + p1) + p2 and no other order; with `direct`, where no sum is packed."""
    assert torch.tensor(big) + small == big  # lost, were it added before
    values = [torch.full((1, 32), value) for value in (big, -big, small)]
    for result in reduced("direct", wire, values):
        assert result.unique().tolist() == [pytest.approx(small, rel=2.0**-9)]


def test_packed_half_precision_agrees_too() -> None:
    for name, dtype in itertools.product(COLLECTIVES, (torch.bfloat16, torch.float16)):
        inputs = [part.to(dtype) / 100 for part in partials(3, 72)]
        first, *others = reduced(name, "q8", inputs)
        assert first.dtype == dtype
        assert all(torch.equal(first, other) for other in others)
        exact = sum(part.double() for part in inputs)
        assert (first.double() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("name", ["star", "direct"])
def test_rank_order(name: str) -> None:
    """(p0 + p1) + p2 and no other order: these values tell the difference."""
    values = [torch.tensor([1e8]), torch.tensor([-1e8]), torch.tensor([1.0])]
    results = run_ranks(3, lambda rt: COLLECTIVES[name].run(rt, values[rt.rank].clone()))
    assert [float(result) for result in results] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("world_size", range(1, 20))
def test_tree_groups_hold_every_worker_once(world_size: int) -> None:
    groups = tree_groups(world_size)
    assert [rank for group in groups for rank in group] == list(range(1, world_size))


def test_unknown_collective() -> None:
    with pytest.raises(ValueError, match="collective=mesh is unknown; choose one of star, tree"):
        collective_by_name("mesh")


@pytest.mark.parametrize(
    ("name", "size", "count"), [("star", 8, 1), ("ring", 2, 1), ("direct", 8, 7), ("direct", 1, 0)]
)
def test_direct_receives_from_everyone_before_it_adds(name: str, size: int, count: int) -> None:
    assert COLLECTIVES[name].num_receive_buffers(size) == count


def test_packed_messages_that_are_there_at_once() -> None:
    for name, record in COLLECTIVES.items():
        for size in (2, 5):
            assert record.messages(size) == (size if name == "direct" else 1)


def test_a_record_is_found_by_its_name() -> None:
    assert {"star", "tree", "ring", "direct"} <= COLLECTIVES.keys()
    assert all(record.name == name for name, record in COLLECTIVES.items())
    assert collective_by_name("ring") is COLLECTIVES["ring"]


@pytest.mark.parametrize(("name", "hops"), [("star", 8), ("tree", 16), ("ring", 56), ("direct", 4)])
def test_latency_on_the_papers_topology(name: str, hops: int) -> None:
    assert 4 * COLLECTIVES[name].num_steps(8) == hops


@pytest.mark.parametrize(
    ("name", "latencies", "transfers"),
    [("star", 2, 14), ("tree", 4, 4 + 5), ("ring", 14, 14 / 8), ("direct", 1, 7)],
)
def test_closed_forms_of_8_devices(name: str, latencies: int, transfers: float) -> None:
    """32 KB over 300 Mbit/s take 0.87381 ms; 7 workers are groups of 2, 2 and 3 under 3 heads."""
    transfer_s = 32768 * 8 / 300e6

    def time_s(one_way_s: float, bandwidth_bps: float) -> float:
        return COLLECTIVES[name].time_s(
            8, one_way_s=one_way_s, nbytes=32768, bandwidth_bps=bandwidth_bps
        )

    assert time_s(0.004, 0) == pytest.approx(latencies * 0.004)
    assert time_s(0.004, 300e6) == pytest.approx(latencies * 0.004 + transfers * transfer_s)


@pytest.mark.parametrize("name", COLLECTIVES)
def test_one_device_takes_no_time(name: str) -> None:
    assert COLLECTIVES[name].time_s(1, one_way_s=1, nbytes=1, bandwidth_bps=1) == 0


def test_a_tree_of_two_is_a_star() -> None:
    times = [
        COLLECTIVES[name].time_s(2, one_way_s=0.001, nbytes=1000, bandwidth_bps=1e6)
        for name in ("tree", "star")
    ]
    assert times == pytest.approx([0.018, 0.018])


def test_a_record_without_a_formula_is_refused_by_name() -> None:
    """Whichever it is: nothing is taken from another collective."""
    given = vars(COLLECTIVES["star"]) | {"name": "butterfly"}
    assert Collective(**given).name == "butterfly"
    formulas = [name for name in given if name not in ("name", "run", "to_hub")]
    assert len(formulas) == 7
    for lacking in formulas:
        some = {name: value for name, value in given.items() if name != lacking}
        with pytest.raises(ValueError, match=f"the collective butterfly has no {lacking}; its"):
            Collective(**some)
    with pytest.raises(ValueError, match="no latencies, payloads, between, sent, way_back, rece"):
        Collective(name="butterfly", run=COLLECTIVES["star"].run)


def test_two_collectives_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two collectives called ring; each needs its own name"):
        by_name([*COLLECTIVES.values(), COLLECTIVES["ring"]])


@pytest.mark.parametrize("formula", ["received", "latencies"])
def test_a_formula_that_is_none_is_refused(formula: str) -> None:
    """Before anything is run: in a device it would be an error of its own."""
    wrong = None if formula == "received" else lambda num_devices, hops: 2
    with pytest.raises(ValueError, match=f"the collective star: {formula} must be a function of"):
        replace(COLLECTIVES["star"], **{formula: wrong})
