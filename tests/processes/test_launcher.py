"""Device processes: what they report, how they overlap, and how they end."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.models_zoo import prompt_of
from tests.helpers.processes import LONG, no_children_left, signal_later, timed
from tests.helpers.running import make_job, run_ok
from tests.helpers.saboteur import Saboteur
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Request
from tpi_bench.contract.runtime import Span
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host.fork import fork_context
from tpi_bench.processes import crew, launcher
from tpi_bench.processes.control import Control, Lost, StatusQuestion
from tpi_bench.processes.handle import Handle


def overlaps(spans: list[Span], others: list[Span]) -> int:
    """Total time in ns that a span of the first list runs while one of the second does."""
    return sum(
        max(0, min(a.end_ns, b.end_ns) - max(a.start_ns, b.start_ns)) for a in spans for b in others
    )


def test_loads_run_behind_compute_and_allreduce(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """By the spans, not by luck: loads lie within the waits for the allreduce."""
    request = Request(prompt_ids=prompt_of(5), num_new_tokens=8)
    network = NetworkConfig(topology="switch", link_latency_ms=1)
    job = make_job(
        TpiSystem(window=2),
        checkpoints["gqa"],
        cache_dir,
        num_devices=2,
        request=request,
        network=network,
        trace=True,
    )
    outcome = run_ok(job)
    worker = next(device for device in outcome.devices if device.rank == 1)
    reads = [span for span in worker.spans if span.kind == "read"]
    busy = [span for span in worker.spans if span.kind in ("compute", "sync")]
    waits = [span for span in worker.spans if span.kind == "load_wait"]
    hidden = [
        span for span in reads if overlaps([span], busy) > 0.5 * (span.end_ns - span.start_ns)
    ]
    # 4 ms of link time an allreduce against reads of some 100 us: what is read hides behind it
    assert len(reads) > 50
    assert len(hidden) > 0.8 * len(reads)
    assert overlaps(busy, busy) > 5 * sum(span.end_ns - span.start_ns for span in waits)
    for span in busy:  # what a thread ran and waited for a core is part of its span
        assert span.cpu_ns is not None
        took_ns = span.end_ns - span.start_ns
        assert 0 <= span.cpu_ns + (span.core_wait_ns or 0) < took_ns + 1_000_000
    received = [span for span in busy if span.key == "recv"]
    slept = [(s.cpu_ns or 0) + (s.core_wait_ns or 0) for s in received]
    assert sum(slept) < 0.7 * sum(s.end_ns - s.start_ns for s in received)
    assert all(span.cpu_ns is None and span.core_wait_ns is None for span in reads)


def test_a_tokens_time_adds_up(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    request = Request(prompt_ids=prompt_of(5), num_new_tokens=30)
    network = NetworkConfig(topology="switch", link_latency_ms=0.5)
    job = make_job(
        TpiSystem(window=2),
        checkpoints["gqa"],
        cache_dir,
        num_devices=2,
        request=request,
        network=network,
    )
    generation = run_ok(job).generation
    assert generation is not None
    total = generation.token_ns[-1] - generation.request_ns
    explained = sum(sum(account.values()) for account in generation.account)
    assert 0.9 * total < explained <= total
    for before, after in itertools.pairwise(generation.token_ns):
        assert after - before > 0.95 * 3 * 2 * 2 * 1_000_000  # 6 allreduces of 2 ms each
    # the master computes while its sum is on the way to the worker, so it waits for a little less
    assert all(account["sync"] > 6_000_000 for account in generation.account[1:])


def test_reports(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    request = Request(prompt_ids=prompt_of(5), num_new_tokens=4, warmup_tokens=0)
    job = make_job(
        TpiSystem(window=1), checkpoints["gqa"], cache_dir, num_devices=2, request=request
    )
    outcome = run_ok(job)
    for device in sorted(outcome.devices, key=lambda d: d.rank):
        streamed = sum(block.nbytes for block in job.blocks[device.rank])
        # 4 passes, and the first block of a fifth that was loaded ahead
        assert device.weight_bytes_read == 4 * streamed + job.blocks[device.rank][0].nbytes
        assert device.ledger_bytes["window"] == max(b.nbytes for b in job.blocks[device.rank])
        assert device.peak_anon_bytes >= device.start_anon_bytes > 0
        assert device.peak_file_bytes > 0
        assert device.num_threads == 1
        assert device.read_mode in ("direct", "buffered, dropped after each read")
    assert len(outcome.round_trips_ns) > 0


@pytest.mark.parametrize(
    ("harm", "status", "message"),
    [
        ("raise", "error", "rank 2 failed: RuntimeError: a worker's own mistake"),
        ("exit", "device_lost", "rank 2 ended without a result (exit status 7)"),
        ("loop", "timeout", "rank 2 hangs: it has made no progress for 1 s (network.timeout_s)"),
    ],
)
def test_the_guilty_rank_is_named(
    checkpoints: dict[str, Path], cache_dir: Path, harm: str, status: str, message: str
) -> None:
    job = make_job(
        Saboteur(2, harm),
        checkpoints["gqa"],
        cache_dir,
        num_devices=4,
        request=LONG,
        network=NetworkConfig(timeout_s=1.0),
    )
    outcome, took = timed(job)
    assert (outcome.status, outcome.error) == (status, message)
    assert took < 5
    assert no_children_left()


@pytest.mark.parametrize(
    ("rank", "harm", "message"),
    [
        (
            0,
            "forget",
            "rank 0 returned from run_device while rank 1 still exchanges messages with it; a "
            "master whose workers loop over Steps calls Steps.end before it returns",
        ),
        (
            1,
            "crop",
            "rank 0 failed: ValueError: rank 1 sent 1420 bytes where 1440 are received; a send and "
            "its recv take buffers of one size (an error of the program: no device is lost)",
        ),
    ],
)
def test_a_wrong_program_is_no_lost_device(
    checkpoints: dict[str, Path], cache_dir: Path, rank: int, harm: str, message: str
) -> None:
    request = Request(prompt_ids=prompt_of(5), num_new_tokens=2)
    system = Saboteur(rank, harm)
    job = make_job(system, checkpoints["gqa"], cache_dir, num_devices=2, request=request)
    outcome, _ = timed(job)
    assert (outcome.status, outcome.error) == ("error", message)


@pytest.mark.parametrize(
    ("number", "status", "part"),
    [
        (signal.SIGKILL, "device_lost", "rank 1 was killed by signal 9 (SIGKILL)"),
        (signal.SIGSTOP, "timeout", "rank 1 hangs: it has not answered for 1 s"),
    ],
)
def test_a_device_killed_or_stopped_in_the_middle_of_a_token(
    checkpoints: dict[str, Path], cache_dir: Path, number: int, status: str, part: str
) -> None:
    network = NetworkConfig(topology="switch", link_latency_ms=2, timeout_s=1.0)
    job = make_job(
        TpiSystem(), checkpoints["gqa"], cache_dir, num_devices=3, request=LONG, network=network
    )
    killer = signal_later(number)
    outcome, took = timed(job)
    killer.join()
    assert outcome.status == status
    assert outcome.error is not None
    assert part in outcome.error
    assert took < 8
    assert no_children_left()


def test_a_block_that_cannot_be_read_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    job = make_job(TpiSystem(window=1), checkpoints["gqa"], tmp_path, num_devices=2, request=LONG)
    victim = Path(job.blocks[1][3].path)
    victim.write_bytes(victim.read_bytes()[:8192])
    outcome, _ = timed(job)
    assert outcome.status == "error"
    assert outcome.error is not None
    assert f"rank 1 failed: cannot read block {victim}: the file ends" in outcome.error
    victim.unlink()
    outcome, _ = timed(job)
    assert outcome.error is not None
    assert f"cannot read block {victim}: No such file or directory" in outcome.error


def test_a_single_device_that_hangs_is_noticed(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    job = make_job(
        Saboteur(0, "loop"),
        checkpoints["gqa"],
        cache_dir,
        num_devices=1,
        request=LONG,
        network=NetworkConfig(timeout_s=1.0),
    )
    outcome, took = timed(job)
    assert outcome.error == "rank 0 hangs: it has made no progress for 1 s (network.timeout_s)"
    assert took < 5


def test_a_device_that_computes_for_long_is_not_hanging(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    request = Request(prompt_ids=prompt_of(5), num_new_tokens=2)
    job = make_job(
        Saboteur(1, "slow"),
        checkpoints["gqa"],
        cache_dir,
        num_devices=2,
        request=request,
        network=NetworkConfig(timeout_s=0.5),
    )
    run_ok(job)


class NoInterpreter:
    """A fork server's context whose interpreter ends when it is to fork another process."""

    def __init__(self, num_left: int) -> None:
        self._context = fork_context()
        self._num_left = num_left
        self.Pipe = self._context.Pipe

    def Process(self, **arguments: Any) -> Any:
        process = self._context.Process(**arguments)
        if self._num_left == 0:

            def broken() -> None:
                raise EOFError

            process.start = broken  # type: ignore[method-assign]
        self._num_left -= 1
        return process


@pytest.mark.parametrize("rank", [0, 1])
def test_a_device_that_nothing_can_be_forked_for_is_lost(
    checkpoints: dict[str, Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    job = make_job(TpiSystem(), checkpoints["gqa"], cache_dir, num_devices=2, request=LONG)
    monkeypatch.setattr(crew, "fork_context", lambda: NoInterpreter(rank))
    outcome = launcher.run_job(job)
    assert outcome.status == "device_lost"
    assert outcome.error == (
        f"rank {rank} could not be started: the interpreter that devices are forked from has "
        "ended; it may have run out of memory (EOFError)"
    )
    assert no_children_left()


class Gone(Handle):
    """A device that has ended."""

    def how_it_died(self) -> str:
        return "ended without a result (exit status 1)"

    def end(self, *, in_peace: bool) -> None:
        pass


def test_what_a_device_said_before_it_ended_is_heard(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """Also where the launcher asks it something in between: whom it misses is the cause."""
    job = make_job(TpiSystem(), checkpoints["gqa"], cache_dir, num_devices=2, request=LONG)
    lone_crew: Any = SimpleNamespace(caps=SimpleNamespace(was_killed=lambda rank: False))
    launch = launcher.Launch(job, None, None, lone_crew)
    ours, theirs = multiprocessing.Pipe()
    device = Gone(0, ours)
    launch._devices.append(device)
    Control(theirs).send(Lost(1, "has hung up"))
    theirs.close()
    launch._tell([device], StatusQuestion())
    launch._listen(5.0, until=lambda: device.is_closed)
    assert launch._hearing.trouble.lost == [(0, 1, "has hung up")]
    assert not launch._hearing.trouble.died
