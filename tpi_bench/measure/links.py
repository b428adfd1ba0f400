"""What messages between the devices of a team take at least, for `bounds.py`.

A message that is alone takes what the virtual network says; a device sends one after another, and
takes CPU time for each. Of allreduces that follow each other only dependencies count that are there
whatever overlaps: a device goes on when a sum is there that others had to add to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tpi_bench.contract.network import NetworkConfig
from tpi_bench.engine.collectives import tree_groups
from tpi_bench.measure.household import Household, Team
from tpi_bench.virtual.network import transfers_s


@dataclass(frozen=True, kw_only=True)
class Links:
    """`alone_s[a][b]`: a hidden state from rank a to rank b, CPU time of both included.
    `chunk_s` the least of an n-th of it, from any to any. `cpu_s[a]`: of rank a for a message.
    `port_s[a]`: how long rank a's first port is taken by one. `air_s[a]`: the channel by a crossing
    between rank a and the access point; 0 where there is none.
    """

    alone_s: Sequence[Sequence[float]]
    chunk_s: float
    cpu_s: Sequence[float]
    port_s: Sequence[float]
    air_s: Sequence[float]

    @classmethod
    def of(cls, household: Household, team: Team, nbytes: int) -> Links:
        """For messages of so many bytes."""
        network, count = _network_of(household, team), len(team)
        cpu_s = [household.profiles[i].message_overhead_us * 1e-6 for i in team]
        port_s = [_port_s(network, rank, nbytes) for rank in range(count)]
        is_air = network.topology == "wifi"
        chunk = transfers_s(network, count, nbytes // count)
        return cls(
            alone_s=_with_cpu(transfers_s(network, count, nbytes), cpu_s),
            chunk_s=_least(_with_cpu(chunk, cpu_s)),
            cpu_s=cpu_s,
            port_s=port_s,
            air_s=port_s if is_air else [0.0] * count,
        )

    @property
    def num_devices(self) -> int:
        return len(self.cpu_s)

    @property
    def least_hop_s(self) -> float:
        return _least(self.alone_s)

    def round_s(self) -> float:
        """Through all devices in order and back to the first."""
        count = self.num_devices
        return sum(self.alone_s[rank][(rank + 1) % count] for rank in range(count))

    def sums_s(self, collective: str, compute_s: Sequence[float], num_sums: int) -> float:
        """So many allreduces one after another; `compute_s[rank]` is what a rank adds between
        them in all, evenly.
        """
        if collective in ("star", "tree"):
            return self._by_a_hub(collective, compute_s, num_sums)
        if collective == "direct":
            return self._direct(compute_s, num_sums)
        return self._ring(compute_s, num_sums)

    def _by_a_hub(self, collective: str, compute_s: Sequence[float], num_sums: int) -> float:
        """The master's sum to a worker, what that adds, and its part back to the master.

        A token begins with the embedding, from the master to each directly, and need not wait for
        the way back of its last sum.
        """
        count = self.num_devices
        heads = {rank: rank for rank in range(1, count)}
        if collective == "tree":
            heads = {rank: group[0] for group in tree_groups(count) for rank in group}
        served = list(dict.fromkeys(heads.values()))
        ways = []
        for rank in range(1, count):
            head = heads[rank]
            place = served.index(head)  # heads before this one are sent to first
            wait_s = place * max(self.port_s[0], self.cpu_s[0])
            there_s = wait_s + self.alone_s[0][head]
            back_s = self.alone_s[head][0] + (len(served) - 1 - place) * self.cpu_s[0]
            if head != rank:
                there_s += self.alone_s[head][rank]
                back_s += self.alone_s[rank][head]
            rest_s = (num_sums - 1) * there_s + num_sums * back_s
            ways.append(self.alone_s[0][rank] + rest_s + compute_s[rank])
        master_s = compute_s[0] + num_sums * 2 * len(served) * self.cpu_s[0]
        above = {rank: 0 if head == rank else head for rank, head in heads.items()}
        sum_s = sum(self.air_s[rank] + self.air_s[other] for rank, other in above.items())
        embedding_s = sum(self.air_s[0] + self.air_s[rank] for rank in heads)
        air_s = embedding_s + (2 * num_sums - 1) * sum_s
        return max(master_s, air_s, *ways)

    def _direct(self, compute_s: Sequence[float], num_sums: int) -> float:
        """Everyone waits for everyone else's part."""
        count = self.num_devices
        each_s = [seconds / num_sums for seconds in compute_s]
        around = [
            each_s[rank]
            + (count - 2) * max(self.port_s[rank], self.cpu_s[rank])
            + self.alone_s[rank][rank - 1]
            for rank in range(count)
        ]  # who is served last is the one before
        rounds, rest = divmod(num_sums, count)
        found = [rounds * sum(around) + rest * each_s[0]]
        for rank in range(1, count):
            both_s = self.alone_s[0][rank] + self.alone_s[rank][0]
            found.append(num_sums // 2 * (each_s[0] + each_s[rank] + both_s))
            found.append(each_s[0] + (num_sums - 1) * each_s[rank] + both_s)
        found.append(compute_s[0] + num_sums * 2 * (count - 1) * self.cpu_s[0])
        found.append(num_sums * 2 * (count - 1) * sum(self.air_s))
        return max(found)

    def _ring(self, compute_s: Sequence[float], num_sums: int) -> float:
        """A chunk passes all devices twice but for two steps, if it is that of the next but one."""
        count = self.num_devices
        hops = max(0, num_sums - count)
        latency_s = hops * 2 * (count - 1) * self.chunk_s
        slowest_s = max(compute_s) * (num_sums - 2) / num_sums
        slowest_s += max(0, num_sums - 2) * count * self.chunk_s
        shared_s = latency_s + hops * min(compute_s) / num_sums
        air_s = 4 * (count - 1) * sum(self.air_s) / count
        return max(shared_s, slowest_s, num_sums * air_s, compute_s[0])


def _network_of(household: Household, team: Team) -> NetworkConfig:
    """Without jitter, which may also make a message faster."""
    network = replace(household.network, **household.network_changes(team))
    least_ms = network.link_latency_ms - network.jitter_ms
    return replace(network, link_latency_ms=least_ms, jitter_ms=0.0)


def _port_s(network: NetworkConfig, rank: int, nbytes: int) -> float:
    """A message at a device's own up-link, or on the channel between it and the access point."""
    mbps = network.bandwidth_mbps * (2 if network.topology == "wifi" else 1)
    if network.station_mbps:
        mbps = network.station_mbps[rank]
    return nbytes * 8e-6 / mbps if mbps else 0.0


def _with_cpu(table: Sequence[Sequence[float]], cpu_s: Sequence[float]) -> list[list[float]]:
    return [
        [seconds + cpu_s[a] + cpu_s[b] for b, seconds in enumerate(row)]
        for a, row in enumerate(table)
    ]


def _least(table: Sequence[Sequence[float]]) -> float:
    return min(seconds for a, row in enumerate(table) for b, seconds in enumerate(row) if a != b)
