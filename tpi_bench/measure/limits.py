"""What a token of a point costs at least: bytes over measured or profiled rates, and round trips.

Every speed in the results stands beside this. Decoding touches every weight once a pass: its limit
is bytes over memory bandwidth in memory, streamed bytes over disk bandwidth, and the links. A pass
gives one token, or with speculation several, each of which has its share of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tpi_bench.contract.blocks import PAGE, BlockFile, Extent
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.model import BYTES_PER_VALUE
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.request import Generation
from tpi_bench.contract.system import Streaming, System
from tpi_bench.contract.testbed import Rates, Testbed
from tpi_bench.host.fork import in_helper
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure.probe import HostLimits, measure_limits
from tpi_bench.report.rows import Limits

_PROBED_BYTES = 32 << 20  # of a library's file
_CACHED_BYTES = 32 << 20  # fewer stay in a core's own cache, and cost less than a call of torch


def host_limits(testbed: Testbed, system: System, job: Job) -> HostLimits | None:
    """What this host can do right now; None where the testbed knows its devices' rates, and where
    it is another program that computes.

    With as many threads as the devices that compute at once have together: one alone does not reach
    what memory gives, and the stages of a pipeline have no more than one of them has.
    """
    if testbed.rates(job) is not None or system.place(job):
        return None
    sizes = _token_bytes(system, job, 2)
    if job.hosts:
        threads = testbed.device_threads(job)
        arguments = [
            (
                threads[rank],
                streamed_extents(system, job, [rank]),
                None,
                max(_CACHED_BYTES, sizes[rank].layers + sizes[rank].head),
            )
            for rank in range(job.num_devices)
        ]
        found = testbed.at_devices(job, measure_limits, arguments)
        assert found is not None
        return HostLimits.of_devices(found)
    num_threads = min(len(available_cpus()), _at_once(system, job) * job.threads_per_device)
    touched = max(_CACHED_BYTES, sum(size.layers + size.head for size in sizes))
    extents = streamed_extents(system, job)
    return in_helper(measure_limits, num_threads, extents, _message_bytes(job), touched)


def _at_once(system: System, job: Job) -> int:
    """How many devices read weights at the same time; those of a library work in turns."""
    if job.plan is None:
        return 1 if system.is_library else job.num_devices
    shards = enumerate(job.plan.shards)
    working = {rank for rank, own in shards if any(shard.layer >= 0 for shard in own)}
    return max(len(working.intersection(team)) for team in job.plan.teams)


def _message_bytes(job: Job) -> int | None:
    """A hidden state as decoding sends it; None where nothing is sent, or links are emulated."""
    if job.num_devices == 1 or job.network.is_emulated:
        return None
    return job.config.hidden * BYTES_PER_VALUE[job.dtype]


def point_limits(
    testbed: Testbed, system: System, job: Job, outcome: Outcome, host: HostLimits | None
) -> Limits:
    """The limit columns of a run row; empty for a program on devices that nobody here knows."""
    if system.place(job):
        return Limits.unmeasured()
    passes = Passes.of(outcome.generation)
    sizes = _token_bytes(system, job, passes.count + 1)
    teams = [[rank] for rank in range(job.num_devices)] if job.plan is None else job.plan.teams
    rates = testbed.rates(job)
    if rates is not None:
        times = own_times(sizes, rates, teams)
    else:
        assert host is not None
        each = host.by_device or (host,)
        rates = Rates(
            memory_bps=tuple(device.memory_bps for device in each),
            disk_bps=tuple(device.disk_bps for device in each),
        )
        if host.by_device:
            times = own_times([_uncached(size) for size in sizes], rates, teams)
        else:
            times = shared_times(sizes, host, teams)
    one_way_s = testbed.one_way_s(job, outcome.round_trips_ns)
    if host is not None and host.round_trip_s / 2 < one_way_s:  # NaN where links are emulated
        one_way_s = host.round_trip_s / 2  # the run's own few were made at a bad moment
    traffic, share = passes.traffic(system.traffic(job)), passes.per_token
    path_s = job.network.path_s(traffic, one_way_s) * share
    channel_s, times = job.network.channel_s(traffic) * share, times.scaled(share)
    return Limits(
        memory_bps=min(rates.memory_bps),
        disk_bps=min(rates.disk_bps),
        limit_memory_s=times.memory_s,
        limit_disk_s=times.disk_s,
        limit_network_s=max(path_s, channel_s),
        limit_token_s=token_limit_s(times, path_s, channel_s),
        limit_spread=0.0 if host is None else host.spread,
        busy_cores_probe=math.nan if host is None else host.busy_cores,
        beats_limit=None,  # its speed is not known here
        raw_round_trip_s=math.nan if host is None else host.round_trip_s,
    )


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Those of an answer after its first token: how many, how many for each token that they gave,
    and how many positions one had on average.
    """

    count: int = 1
    per_token: float = 1.0
    positions: float = 1.0

    @classmethod
    def of(cls, generation: Generation | None) -> Passes:
        """Without speculation a pass is a token."""
        if generation is None:
            return cls()
        count, num_later = generation.num_passes, len(generation.token_ids) - 1
        if not generation.proposed:
            return cls(count=max(1, count))
        positions = 1 + sum(generation.proposed) / count
        return cls(count=count, per_token=count / num_later, positions=positions)

    def traffic(self, of_a_token: Traffic) -> Traffic:
        """Each position has its own hidden state; latencies are those of the pass."""
        return replace(
            of_a_token,
            serial_bytes=of_a_token.serial_bytes * self.positions,
            all_bytes=of_a_token.all_bytes * self.positions,
        )


def _token_bytes(system: System, job: Job, num_tokens: int) -> list[TokenBytes]:
    """Of each device, a pass after the first of `num_tokens`, which one pass each gives.

    A look-up in the embedding touches a row and counts as nothing.
    """
    if job.blocks:
        return [
            _device_bytes(job.blocks[rank], system.streaming(job, rank), memory, num_tokens)
            for rank, memory in enumerate(map(job.memory_of, range(job.num_devices)))
        ]
    touched = system.token_weight_bytes(job) // job.num_devices
    return [
        TokenBytes(layers=touched, head=0, streamed=round(max(0.0, touched - job.memory_of(rank))))
        for rank in range(job.num_devices)
    ]


def _device_bytes(
    blocks: Sequence[BlockFile], streaming: Streaming, memory_bytes: float, num_tokens: int
) -> TokenBytes:
    layers = sum(block.weight_bytes for block in blocks if block.layer >= 0)
    head = sum(block.weight_bytes for block in blocks if block.kind == "output")
    # What lies in the window at the first token is not read during the later ones.
    streamed = streaming.streamed_bytes - streaming.area_bytes / max(1, num_tokens - 1)
    if streaming.is_paged:
        # Of a cyclic scan with a fixed resident set, all but that set is read: nothing does better.
        streamed = layers + head - memory_bytes
    return TokenBytes(layers=layers, head=head, streamed=round(max(0.0, streamed)))


def streamed_extents(system: System, job: Job, ranks: Sequence[int] | None = None) -> list[Extent]:
    """What tokens are read from, for measuring the disk; none where all is in memory."""
    is_short = job.memory_bytes is not None
    if not job.blocks:
        found = [_beginning(path) for path in job.opened_files] if is_short else []
        return [extent for extent in found if extent.nbytes >= _PROBED_BYTES // 2]
    ranks = range(job.num_devices) if ranks is None else ranks
    plans = [system.streaming(job, rank) for rank in ranks]
    read = [plan for plan in plans if is_short or not plan.is_paged]
    return [part.extent for plan in read for part in plan.streamed_parts]


def _beginning(path: str) -> Extent:
    """Of a library's file, as something to read."""
    size = Path(path).stat().st_size // PAGE * PAGE
    return Extent(path, 0, min(size, _PROBED_BYTES))


@dataclass(frozen=True)
class TokenBytes:
    """One device's weight bytes of a token: of its layers, of the output head, and off the disk."""

    layers: int
    head: int
    streamed: int


@dataclass(frozen=True)
class TokenTimes:
    """What the bytes of a token take at least, in seconds.

    `memory_s`: all of them over memory bandwidth. `critical_memory_s`: those that are touched one
    after another with link latencies (one device's under tensor parallelism, where the others work
    or wait meanwhile; everyone's in a pipeline). Of devices that differ it is the quickest's: while
    the slowest computes, the others' messages may be on their way, or there already. `disk_s`:
    streamed ones over disk bandwidth.
    """

    memory_s: float
    critical_memory_s: float
    disk_s: float

    def scaled(self, share: float) -> TokenTimes:
        """Of a pass, what falls to each of its tokens."""
        return TokenTimes(
            self.memory_s * share, self.critical_memory_s * share, self.disk_s * share
        )


def shared_times(
    sizes: Sequence[TokenBytes], host: HostLimits, teams: Sequence[Sequence[int]]
) -> TokenTimes:
    """Devices that share one host's memory and disk. A few megabytes of weights cost nothing."""
    layers, head = [size.layers for size in sizes], sum(size.head for size in sizes)
    streamed = sum(size.streamed for size in sizes)
    disk_s = streamed / host.disk_bps if streamed else 0.0
    if sum(layers) + head < _CACHED_BYTES:
        return TokenTimes(math.nan, 0.0, disk_s)
    in_turn = _in_turn(layers, teams, of_a_team=min)
    all_s, in_turn_s = (sum(layers) + head) / host.memory_bps, (in_turn + head) / host.memory_bps
    return TokenTimes(all_s, in_turn_s, disk_s)


def _uncached(size: TokenBytes) -> TokenBytes:
    """A few megabytes of weights stay in a core's cache, and cost nothing."""
    is_small = size.layers + size.head < _CACHED_BYTES
    return replace(size, layers=0, head=0) if is_small else size


def own_times(
    sizes: Sequence[TokenBytes], rates: Rates, teams: Sequence[Sequence[int]]
) -> TokenTimes:
    """Devices with memory and disk of their own: the slowest of a team, and teams in turn."""
    layers_s = [size.layers / bps for size, bps in zip(sizes, rates.memory_bps, strict=True)]
    head_s = max(size.head / bps for size, bps in zip(sizes, rates.memory_bps, strict=True))
    disk_s = max(
        size.streamed / bps if size.streamed else 0.0  # of a disk that nobody reads, bps is NaN
        for size, bps in zip(sizes, rates.disk_bps, strict=True)
    )
    alone, in_turn = _in_turn(layers_s, teams), _in_turn(layers_s, teams, of_a_team=min)
    times = TokenTimes(alone + head_s, in_turn + head_s, disk_s)
    if not rates.is_one_disk:
        return times
    return replace(times, disk_s=sum(size.streamed for size in sizes) / rates.disk_bps[0])


def _in_turn(
    values: Sequence[float],
    teams: Sequence[Sequence[int]],
    of_a_team: Callable[[Iterable[float]], float] = max,
) -> float:
    """Of devices of which those of a team work at once, and the teams one after another."""
    return sum(of_a_team(values[rank] for rank in team) for team in teams)


def token_limit_s(times: TokenTimes, path_s: float, channel_s: float) -> float:
    """Nothing can be faster, whatever overlaps: memory, memory in turn with the links of the
    critical path, a channel that all share (on which a message may pass while those who have
    theirs compute), or disk.
    """
    memory_s = 0.0 if math.isnan(times.memory_s) else times.memory_s
    return max(memory_s, times.critical_memory_s + path_s, channel_s, times.disk_s)
