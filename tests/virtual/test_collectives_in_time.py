"""Golden times of every collective, on the paper's network and on links with little room."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.virtual import IDEAL, MS, PAPER, US, world_of
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.virtual.runtime import VirtualRuntime


def allreduce(
    name: str, num_devices: int, count: int, network: NetworkConfig
) -> tuple[list[int], list[torch.Tensor]]:
    """When each rank has the sum, in ns, and the sums."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(num_devices, count, generator=generator)

    def program(rt: VirtualRuntime) -> tuple[int, torch.Tensor]:
        total = COLLECTIVES[name].run(rt, inputs[rt.rank].clone())
        return rt.now(), total

    ends, sums = zip(*world_of(*[IDEAL] * num_devices, network=network).run(program), strict=True)
    for total in sums:
        assert torch.equal(total, sums[0])
        torch.testing.assert_close(total.double(), inputs.double().sum(0), rtol=0, atol=1e-5)
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
