"""What a token costs at least, against sums made by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.calibration import PLAIN, keep
from tests.helpers.settings import settings_of
from tpi_bench import run
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.request import Generation
from tpi_bench.contract.testbed import Rates
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.measure import limits
from tpi_bench.measure.prepare import prepare
from tpi_bench.measure.probe import HostLimits, measure_limits
from tpi_bench.report.rows import Limits

HOST = HostLimits(memory_bps=10.0, disk_bps=5.0)
SIZES = [limits.TokenBytes(layers=100, head=50, streamed=30), limits.TokenBytes(60, 0, 60)]
MB = 1_000_000


def test_limit_takes_the_disk_behind_the_rest() -> None:
    def limit(memory_s: float, disk_s: float, channel_s: float = 0.0) -> float:
        return limits.token_limit_s(limits.TokenTimes(memory_s, 1.0, disk_s), 2.0, channel_s)

    assert limit(2.0, 2.5) == 3.0
    assert limit(2.0, 5.0) == 5.0
    assert limit(9.0, 5.0) == 9.0
    assert limit(2.0, 2.5, channel_s=2.9) == 3.0  # computing may overlap what others send
    assert limit(2.0, 2.5, channel_s=7.0) == 7.0


@pytest.mark.parametrize("wire", ["auto", "q8"])
@pytest.mark.parametrize(("num_devices", "latency_ms"), [(4, 0.25), (8, 1)])
def test_no_token_beats_a_channel_that_all_share(
    num_devices: int, latency_ms: float, wire: str, tmp_path: Path
) -> None:
    """Who has all messages computes while others' are on the channel: the two do not add up."""
    row = run(
        *("testbed=virtual", "model=llama2_7b", "model.weights=q4", "system=tpi_direct"),
        *("workload.prompt_tokens=2", "workload.num_new_tokens=4", f"system.wire={wire}"),
        *("network=wifi", "network.bandwidth_mbps=300", f"network.link_latency_ms={latency_ms}"),
        *(f"testbed.num_devices={num_devices}", f"cache_dir={tmp_path}"),
    ).row
    assert row.limit_token_s <= row.token_latency_s
    assert not row.beats_limit


def test_devices_of_one_host_share_its_memory_and_disk() -> None:
    host = HostLimits(memory_bps=10.0 * MB, disk_bps=5.0 * MB)
    sizes = [
        limits.TokenBytes(layers=100 * MB, head=50 * MB, streamed=30 * MB),
        limits.TokenBytes(60 * MB, 0, 60 * MB),
    ]
    tensor = limits.shared_times(sizes, host, [[0, 1]])
    # While the larger share is computed, what the other sent may be on its way.
    assert tensor == limits.TokenTimes(memory_s=21.0, critical_memory_s=11.0, disk_s=18.0)
    layers = limits.shared_times(sizes, host, [[0], [1]])
    assert layers.critical_memory_s == 21.0
    cached = limits.shared_times(SIZES, HOST, [[0, 1]])
    assert cached.critical_memory_s == 0.0
    assert math.isnan(cached.memory_s)


def test_devices_of_their_own_wait_for_the_slowest() -> None:
    rates = Rates(memory_bps=(10.0, 2.0), disk_bps=(3.0, 4.0))
    tensor = limits.own_times(SIZES, rates, [[0, 1]])
    assert tensor == limits.TokenTimes(memory_s=35.0, critical_memory_s=15.0, disk_s=15.0)
    assert limits.own_times(SIZES, rates, [[0], [1]]).memory_s == 45.0
    one_disk = replace(rates, is_one_disk=True)
    assert limits.own_times(SIZES, one_disk, [[0, 1]]).disk_s == 30.0


def test_no_token_is_faster_than_the_limit_of_devices_that_differ(tmp_path: Path) -> None:
    """While the slowest computes, the messages of the others are on their way."""
    for collective in ("direct", "star", "ring"):
        row = run(
            *("testbed=virtual", "model=llama2_7b", "workload.prompt_tokens=8"),
            "workload.num_new_tokens=3",
            "device=[dell_i7_1165g7,slow(4,30,8,1)]",
            *("network=switch", "network.link_latency_ms=1", "network.bandwidth_mbps=100"),
            f"system=tpi_{collective}" if collective != "star" else "system=tpi",
            f"cache_dir={tmp_path}",
        ).row
        assert row.limit_token_s <= row.token_latency_s
        assert not row.beats_limit


# `debug` in fp32: 4 layers of 6 heads and 3 KV heads of 16, hidden 96, intermediate 160.
ATTENTION = 4 * (2 * 96 * 96 + 2 * 48 * 96 + 96)
FFN = 4 * (3 * 96 * 160 + 96)
HEAD = 4 * (320 * 96 + 96)
PAPER_NETWORK = ["network=paper", "network.link_latency_ms=1", "network.bandwidth_mbps=300"]


def virtual_job(*arguments: str, cache_dir: Path) -> tuple[Job, Limits]:
    """A point of `debug` in virtual time, and its limits after three tokens."""
    settings = settings_of("testbed=virtual", "model=debug", *arguments, f"cache_dir={cache_dir}")
    job = prepare(settings).job
    generation = Generation(token_ids=[0] * 3, request_ns=0, token_ns=[1, 2, 3], account=[])
    outcome = Outcome(status="ok", generation=generation)
    return job, limits.point_limits(settings.testbed, settings.system, job, outcome, None)


def test_a_pass_is_shared_by_the_tokens_that_it_gave(tmp_path: Path) -> None:
    """Eight tokens, seven of them from three passes of 5, 5 and 3 positions: each has three
    sevenths of what weights and latencies cost a pass, and of 13 / 3 hidden states. So a system
    that reads every weight once a pass does not beat its limit.
    """
    typed = ["workload.prompt_ids=[1]", "testbed.num_devices=3", *PAPER_NETWORK]
    job, plain = virtual_job(*typed, "system=pipeline", cache_dir=tmp_path)
    settings = settings_of("testbed=virtual", "model=debug", *typed, f"cache_dir={tmp_path}")
    times = [1, 2, 2, 2, 3, 3, 4, 4]
    generation = Generation(
        token_ids=[0] * 8,
        request_ns=0,
        token_ns=times,
        account=[],
        proposed=[4, 4, 2],
        accepted=[2, 1, 1],
    )
    outcome = Outcome(status="ok", generation=generation)
    found = limits.point_limits(settings.testbed, job.program, job, outcome, None)
    assert found.limit_memory_s == pytest.approx(plain.limit_memory_s * 3 / 7)
    wire_s = 3 * 4 * 96 * 8 / 300e6  # three messages of one position
    latency_s = 3 * 4e-3
    assert plain.limit_network_s == pytest.approx(latency_s + wire_s)
    assert found.limit_network_s == pytest.approx((latency_s + wire_s * 13 / 3) * 3 / 7)
    assert found.limit_token_s == pytest.approx(found.limit_memory_s + found.limit_network_s)


def test_one_device_in_memory_reads_every_weight(tmp_path: Path) -> None:
    job, found = virtual_job("workload.prompt_ids=[1]", "testbed.num_devices=1", cache_dir=tmp_path)
    rate = job.profiles[0].memory_bps
    assert found.limit_memory_s == pytest.approx((4 * (ATTENTION + FFN) + HEAD) / rate)
    assert (found.limit_disk_s, found.limit_network_s) == (0.0, 0.0)
    assert found.limit_token_s == found.limit_memory_s
    assert (found.memory_bps, found.disk_bps) == (rate, job.profiles[0].disk_bps)


def test_a_window_reads_all_but_what_lies_in_it_at_the_first_token(tmp_path: Path) -> None:
    job, found = virtual_job(
        "workload.prompt_ids=[1]",
        "testbed.num_devices=1",
        "system.window=2",
        cache_dir=tmp_path,
    )
    files = job.blocks[0]
    area = TpiSystem(window=2).streaming(job, 0).area_bytes
    assert area >= max(a.nbytes + b.nbytes for a, b in itertools.pairwise(files))
    streamed = sum(block.nbytes for block in files) - area / 2
    assert found.limit_disk_s == pytest.approx(streamed / job.profiles[0].disk_bps, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "steps", "payloads"),
    [
        (["system=tpi"], 8 * 2, 8 * 3),
        (["system=tpi_tree"], 8 * 4 - 1, 8 * 4),
        (["system=tpi_ring"], 8 * 4, 8 * 4 / 3),
        (["system=tpi_direct"], 8, 8 * 2),
        (["system=pipeline"], 3, 3),
        (["system=galaxy"], 8 * 3, 8 * 3),
        (["system=prima", "system.planner=memory", "system.rounds=1"], 3, 3),
        (["system=hybrid", "system.group_size=1"], 3, 3),
        (["system=hybrid", "system.group_size=3"], 8 * 2, 8 * 3),
    ],
)
def test_the_links_cost_their_latency_a_step_and_their_bytes(
    arguments: list[str], steps: int, payloads: float, tmp_path: Path
) -> None:
    """Three devices, four layers of two blocks; 4 ms one way on the paper's network, and payloads
    of 96 fp32 values at 300 Mbit/s, one after another.
    """
    _, found = virtual_job(
        "workload.prompt_ids=[1]",
        "testbed.num_devices=3",
        *PAPER_NETWORK,
        *arguments,
        cache_dir=tmp_path,
    )
    assert found.limit_network_s == pytest.approx(steps * 4e-3 + payloads * 96 * 32 / 300e6)
    assert found.limit_token_s >= found.limit_network_s


def test_what_does_not_fit_in_memory_is_read(tmp_path: Path) -> None:
    """Mapped files under a cap: of a cyclic scan, all but what memory holds."""
    job, found = virtual_job(
        "workload.prompt_ids=[1]",
        "testbed.num_devices=1",
        "system=mmap",
        "device.memory_mb=0.3",
        cache_dir=tmp_path,
    )
    streamed = 4 * (ATTENTION + FFN) + HEAD - 300_000
    assert found.limit_disk_s == pytest.approx(streamed / job.profiles[0].disk_bps, rel=1e-6)


def test_what_holds_all_waits_for_no_disk_though_it_does_not_fit(tmp_path: Path) -> None:
    """It runs out of memory, and reads nothing a token: as its `streamed_bytes` say."""
    held = run(
        *("testbed=virtual", "model=debug", "workload.prompt_tokens=3", "testbed.num_devices=1"),
        *("device.memory_mb=0.3", f"cache_dir={tmp_path}"),
    ).row
    assert held.status == "oom"
    assert (held.streamed_bytes, held.limit_disk_s) == (0, 0)
    assert held.limit_token_s == held.limit_memory_s


def test_mapped_files_wait_for_no_disk_where_memory_is_not_capped(tmp_path: Path) -> None:
    mapped = run(
        *("model=debug", "workload.prompt_ids=[1,2,3]", "workload.num_new_tokens=2"),
        *("testbed.num_devices=1", "system=mmap", f"cache_dir={tmp_path}"),
    ).row
    assert (mapped.status, mapped.limit_disk_s) == ("ok", 0)


def test_an_allreduce_is_held_against_its_closed_form(tmp_path: Path) -> None:
    """Star of 3: two latencies of 4 ms and 4 payloads of 96 fp32 values at 300 Mbit/s."""
    _, found = virtual_job(
        "system=allreduce",
        "workload.prompt_tokens=1",
        "testbed.num_devices=3",
        *PAPER_NETWORK,
        cache_dir=tmp_path,
    )
    assert found.limit_network_s == pytest.approx(2 * 4e-3 + 4 * 96 * 32 / 300e6)


@pytest.mark.parametrize(
    ("arguments", "num_threads"),
    [
        (["system=tpi"], 6),
        (["system=pipeline"], 2),
        (["system=edgeshard", "network=switch", "network.link_latency_ms=50"], 2),  # takes one
        (["system=hybrid", "testbed.num_devices=4", "system.group_size=2"], 4),
    ],
)
def test_memory_is_read_by_as_many_as_work_at_once(
    arguments: list[str], num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages of a pipeline take turns: none has more than its own two threads can read."""
    asked: list = []
    monkeypatch.setattr(limits, "available_cpus", lambda: list(range(8)))
    monkeypatch.setattr(limits, "in_helper", lambda fn, *given: asked.append(given))
    keep(tmp_path, t2=PLAIN)
    typed = ["model=debug", "workload.prompt_tokens=1", "testbed.num_devices=3", "network=none"]
    settings = settings_of(
        *typed, "testbed.threads_per_device=2", *arguments, f"cache_dir={tmp_path}"
    )
    limits.host_limits(settings.testbed, settings.system, prepare(settings).job)
    assert [given[0] for given in asked] == [num_threads]


def test_a_host_is_as_fast_as_it_was_ever_seen() -> None:
    other = HostLimits(memory_bps=8.0, disk_bps=7.0, round_trip_s=2.0, spread=0.1)
    found = replace(HOST, round_trip_s=3.0, spread=0.3).best(other)
    assert found == HostLimits(memory_bps=10.0, disk_bps=7.0, round_trip_s=2.0, spread=0.3)


def test_the_probe_finds_rates_and_no_disk_without_files() -> None:
    found = measure_limits(1, [])
    assert found.memory_bps > 1e8
    assert 0 <= found.spread < 1
    assert math.isnan(found.disk_bps)
    assert math.isnan(found.round_trip_s)
    assert 1e-6 < measure_limits(1, [], 8).round_trip_s < 0.1


@pytest.mark.parametrize(
    ("arguments", "probed"),
    [
        (["testbed.num_devices=1", "testbed.threads_per_device=1"], (1, None)),
        (["testbed.num_devices=2", "testbed.threads_per_device=1"], (2, 4 * 96)),
        (["testbed.num_devices=9", "testbed.threads_per_device=1"], (4, 4 * 96)),
        (["testbed.num_devices=2", "network=switch", "network.link_latency_ms=1"], (4, None)),
    ],
)
def test_the_host_is_asked_with_the_threads_and_messages_of_the_point(
    arguments: list[str], probed: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four cores; a hidden state of 96 fp32 values."""
    asked: list = []
    monkeypatch.setattr(limits, "available_cpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(limits, "in_helper", lambda fn, *given: asked.append(given))
    settings = settings_of(
        "model=debug",
        "system=allreduce",
        "workload.prompt_tokens=1",
        "testbed.threads_per_device=2",
        "network=none",
        *arguments,
        f"cache_dir={tmp_path}",
    )
    limits.host_limits(settings.testbed, settings.system, prepare(settings).job)
    ((num_threads, extents, message_bytes, touched_bytes),) = asked
    assert (num_threads, message_bytes) == probed
    assert not extents
    assert touched_bytes == limits._CACHED_BYTES  # no weights: the least


def test_memory_is_read_as_much_as_a_token_touches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that caches which hold some of it are in the rate; over all devices together."""
    asked: list = []
    monkeypatch.setattr(limits, "in_helper", lambda fn, *given: asked.append(given[3]))
    shape = ["model=debug", "model.hidden=768", "model.num_heads=12", "model.num_layers=8"]
    for number in (1, 2):
        settings = settings_of(
            *shape,
            f"testbed.num_devices={number}",
            "workload.prompt_ids=[1]",
            "network=none",
            f"cache_dir={tmp_path}",
        )
        job = prepare(settings).job
        limits.host_limits(settings.testbed, settings.system, job)
        weights = sum(b.weight_bytes for rank in job.blocks for b in rank if b.kind != "input")
        assert asked[-1] == weights > 32 << 20


def test_a_message_is_as_fast_as_it_was_ever_seen(tmp_path: Path) -> None:
    """In the point, where the first few may come at a bad moment, or between plain processes."""
    settings = settings_of(
        "model=debug", "workload.prompt_ids=[1]", "network=none", f"cache_dir={tmp_path}"
    )
    job = prepare(settings).job
    generation = Generation(token_ids=[0] * 3, request_ns=0, token_ns=[1, 2, 3], account=[])
    outcome = Outcome(status="ok", generation=generation, round_trips_ns=[420_000, 480_000])

    def network_s(round_trip_s: float) -> float:
        host = replace(HOST, round_trip_s=round_trip_s)
        found = limits.point_limits(settings.testbed, settings.system, job, outcome, host)
        return found.limit_network_s

    assert network_s(42e-6) == pytest.approx(network_s(math.nan) / 10)
    assert network_s(900e-6) == network_s(math.nan) > 0
