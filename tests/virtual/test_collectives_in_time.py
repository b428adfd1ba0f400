"""Golden times of every collective, on the paper's network and on links with little room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.helpers.virtual import IDEAL, MS, PAPER, US, Scripted, world_of
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.packing import make_wire
from tpi_bench.virtual.costs import ModelledCosts
from tpi_bench.virtual.runtime import VirtualRuntime
from tpi_bench.virtual.world import World


def allreduce(
    name: str,
    num_devices: int,
    count: int,
    network: NetworkConfig,
    wire: str = "auto",
    **times_ns: int,
) -> tuple[list[int], list[torch.Tensor]]:
    """When each rank has the sum, in ns, and the sums. Computations take `times_ns`."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(num_devices, count, generator=generator)
    record = COLLECTIVES[name]

    def program(rt: VirtualRuntime) -> tuple[int, torch.Tensor]:
        end = make_wire(rt, wire, inputs.dtype, count, record.messages(num_devices))
        total = record.run(rt, inputs[rt.rank].clone(), end)
        return rt.now(), total

    world = world_of(*[IDEAL] * num_devices, network=network, costs=Scripted(**times_ns))
    ends, sums = zip(*world.run(program), strict=True)
    atol = 0.1 * num_devices if wire == "q8" else 1e-5
    for total in sums:
        assert torch.equal(total, sums[0])
        torch.testing.assert_close(total.double(), inputs.double().sum(0), rtol=0, atol=atol)
    return list(ends), list(sums)


# The paper's network: a hop is a millisecond, four are a way.

GOLDEN = [
    # The master has the sum after one way, the workers after two: 8 hops.
    ("star", 1, [4, 8, 8, 8, 8, 8, 8, 8]),
    # Groups 1-2, 3-4 and 5-7: the master after two ways, heads after three, leaves after four.
    ("tree", 1, [8, 12, 16, 12, 16, 12, 16, 16]),
    ("direct", 1, [4] * 8),
    # Seven steps to reduce, seven to gather: 56 hops.
    ("ring", 8, [56] * 8),
    # One value is one chunk, and empty ones are not sent: it goes from 0 to 7, which has the sum
    # after 7 ways, and on over 0 to 6, which has it after 14.
    ("ring", 1, [32, 36, 40, 44, 48, 52, 56, 28]),
]


@pytest.mark.parametrize(("name", "count", "ends_ms"), GOLDEN)
def test_golden_times(name: str, count: int, ends_ms: list[int]) -> None:
    ends, sums = allreduce(name, 8, count, PAPER)
    assert ends == [ms * MS for ms in ends_ms]
    again, same_sums = allreduce(name, 8, count, PAPER)
    assert again == ends
    assert all(torch.equal(a, b) for a, b in zip(sums, same_sums, strict=True))


# With finite links: 8 floats are 32 bytes, which take T = 32 us; a way takes L.

TRANSFER = 32 * US


@pytest.fixture(params=[500, 10], ids=["long", "short"])
def way(request: pytest.FixtureRequest) -> tuple[NetworkConfig, int]:
    """A network with links of a byte a us, and the ns of a way: much more or less than T."""
    hop_ms = request.param / 2e3
    network = NetworkConfig(topology="switch", link_latency_ms=hop_ms, bandwidth_mbps=8)
    return network, request.param * US


@pytest.mark.parametrize("n", [4, 8])
def test_contention_of_star(way: tuple[NetworkConfig, int], n: int) -> None:
    """First bits of all workers are at the master at L; its down-link passes one after another.

    It has all at L + (N - 1) T. Its up-link then sends N - 1 sums: worker k's is there at
    L + (N - 1) T + L + k T, the last one's at 2 L + 2 (N - 1) T.
    """
    network, latency = way
    gathered = latency + (n - 1) * TRANSFER
    expected = [gathered] + [gathered + latency + k * TRANSFER for k in range(1, n)]
    assert allreduce("star", n, 8, network)[0] == expected
    assert expected[-1] == 2 * latency + 2 * (n - 1) * TRANSFER


@pytest.mark.parametrize("n", [4, 8])
def test_contention_of_ring(way: tuple[NetworkConfig, int], n: int) -> None:
    """Each of the 2 (N - 1) steps passes a chunk of an N-th, on links of its own: L + T / N."""
    network, latency = way
    step = latency + TRANSFER // n
    assert allreduce("ring", n, 8, network)[0] == [2 * (n - 1) * step] * n


@pytest.mark.parametrize("n", [4, 8])
def test_contention_of_direct(way: tuple[NetworkConfig, int], n: int) -> None:
    """Every up-link sends and every down-link receives N - 1 payloads without a pause."""
    network, latency = way
    assert max(allreduce("direct", n, 8, network)[0]) == latency + (n - 1) * TRANSFER


def test_contention_of_tree(way: tuple[NetworkConfig, int]) -> None:
    """Four devices, groups 1 and 2-3: the leaf sends first, its head has the pair at L + T.

    Head 1's partial is at the master at L + T, head 2's at 2 (L + T). Back: to 1 and, T later, to
    2, which has it at 3 (L + T) + T and sends it to the leaf: 4 (L + T) + T.
    """
    network, latency = way
    step = latency + TRANSFER
    expected = [2 * step, 3 * step, 3 * step + TRANSFER, 4 * step + TRANSFER]
    assert allreduce("tree", 4, 8, network)[0] == expected


# Packed to 8 bits: 256 floats are 272 bytes, 1.0625 a value, where as computed they are 1024.

PACKED = 272 * US


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("star", lambda n, latency: 2 * latency + 2 * (n - 1) * PACKED),
        ("ring", lambda n, latency: 2 * (n - 1) * (latency + PACKED // n)),
        ("direct", lambda n, latency: latency + (n - 1) * PACKED),
    ],
)
def test_packed_payloads_take_less_of_the_links(
    way: tuple[NetworkConfig, int], name: str, end: Callable[[int, int], int], n: int
) -> None:
    """The same forms as above. The ring's 8 groups are divided evenly."""
    network, latency = way
    assert max(allreduce(name, n, 256, network, "q8")[0]) == end(n, latency)


def test_packed_payloads_of_a_tree(way: tuple[NetworkConfig, int]) -> None:
    network, latency = way
    step = latency + PACKED
    expected = [2 * step, 3 * step, 3 * step + PACKED, 4 * step + PACKED]
    assert allreduce("tree", 4, 256, network, "q8")[0] == expected


def test_a_last_group_is_sent_whole(way: tuple[NetworkConfig, int]) -> None:
    """72 values are 3 groups, 102 bytes; in a ring of 4 one device has no chunk: 3 of 34 bytes."""
    network, latency = way
    assert max(allreduce("direct", 2, 72, network, "q8")[0]) == latency + 102 * US
    assert max(allreduce("ring", 4, 72, network, "q8")[0]) == 6 * (latency + 34 * US)


# What packing costs: P to pack, U to unpack, R to add. A way takes 4 ms and nothing else.

P, U, R = MS // 2, MS // 4, MS // 8
WAY = 4 * MS


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        # Workers pack; the master adds two, packs the sum, sends it, and unpacks it itself.
        ("star", [2 * P + WAY + 2 * R + U] + [2 * P + 2 * WAY + 2 * R + U] * 2),
        # The head of 1 and 2 adds its leaf's and packs, as does the master; heads pass the bytes on
        # before they unpack them.
        (
            "tree",
            [3 * P + 2 * WAY + 2 * R + U] + [3 * P + (3 + k) * WAY + 2 * R + U for k in (0, 1)],
        ),
        # Two steps of packing, sending and adding; then one packing, and bytes that are passed on
        # while they are unpacked: only the last of that shows.
        ("ring", [2 * (P + WAY + R) + P + 2 * WAY + U] * 3),
        # All three parts are unpacked and added in one computation.
        ("direct", [P + WAY + R] * 3),
    ],
)
def test_packing_is_charged(name: str, ends: list[int]) -> None:
    assert allreduce(name, 3, 96, PAPER, "q8", pack=P, unpack=U, reduce=R)[0] == ends


def test_packing_is_charged_by_the_profile() -> None:
    """Modelled, without data: bytes over memory bandwidth, and a share for every operator."""
    slow = replace(IDEAL, memory_gb_per_s=1.0, op_overhead_us=3.0, step_overhead_us=0.0)

    def program(rt: VirtualRuntime) -> int:
        end = make_wire(rt, "q8", torch.float32, 8192)
        end.broadcast(rt, torch.empty(1, 8192), [1]) if rt.rank == 0 else None
        return rt.now()

    with torch.device("meta"):
        world = World([slow, slow], NetworkConfig(), ModelledCosts(), trace=True)
        took = world.run(program)[0]
    spans = world.runtimes[0].log.spans
    assert {span.key for span in spans} == {"pack", "send", "unpack"}
    assert sum(span.end_ns - span.start_ns for span in spans) == took
    assert 2 * (4 + 1.0625) * 8192 < took < 400 * US  # bytes take a ns each
    assert world.runtimes[0].bytes_sent == 8192 * 1.0625
