"""A point measured: from what `prepare` made ready to its record."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.host import cache
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure.energy import energy_of, meter_of
from tpi_bench.measure.followed import brought_up_to_date
from tpi_bench.measure.limits import host_limits, point_limits
from tpi_bench.measure.metrics import speed_of
from tpi_bench.measure.noise import look_at_host, noise_of
from tpi_bench.measure.oracle import compare_with_oracle
from tpi_bench.measure.prepare import Prepared, advice_after
from tpi_bench.measure.probe import HostLimits
from tpi_bench.measure.record import begin_page_cache, make_record
from tpi_bench.report.rows import BUSY_SHARE, Exactness, Limits, Record, Speed

_LOG = logging.getLogger(__name__)
_PAUSES_S = (0.0, 0.5, 1.0)  # before each further probe of it


def measure(
    prepared: Prepared,
    on_token: Callable[[int], None] | None = None,
    run: Callable[[Job], Outcome] | None = None,
) -> Record:
    """Run the point and make its record. A device that fails gives a record that says so.

    `run` stands for the testbed's own, where the job is to be run another way.
    """
    settings = prepared.settings
    system, testbed = settings.system, settings.testbed
    started = datetime.datetime.now(datetime.UTC).isoformat()
    before = look_at_host(testbed)
    with _step("probing the host"):
        host = host_limits(testbed, system, prepared.job)
        prepared, followed = brought_up_to_date(prepared)
    job = replace(prepared.job, stream=on_token is not None)
    page_cache = begin_page_cache(testbed, job, settings.cache)
    exactness = Exactness.unmeasured()
    with _logits_file(settings.check) as logits_path:
        job = replace(job, logits_path=logits_path)
        with _step("running the point"):
            if run is None:
                cache_dir = cache.cache_folder(settings.cache_dir)
                run = functools.partial(testbed.run, on_token=on_token, cache_dir=cache_dir)
            with meter_of(testbed, job) as meter:
                outcome = _answered(run(job))
        if outcome.status == "oom":
            outcome.error = f"{outcome.error}; {advice_after(prepared)}"
        if settings.check and outcome.status == "ok":
            exactness = compare_with_oracle(settings, prepared.model, job, outcome)
    after = look_at_host(testbed)
    speed = speed_of(outcome)
    with _step("probing the host again"):
        limits, probed_after = _limits_seen_again(prepared, outcome, speed, host)
    noise = noise_of(before, after, host or followed, probed_after)
    by_device = () if host is None else host.by_device
    for report in outcome.devices if by_device else ():
        rates = by_device[report.rank]
        report.memory_bps, report.disk_bps = rates.memory_bps, rates.disk_bps
    least_s = limits.limit_token_s * (1 - limits.limit_spread)
    limits = replace(limits, beats_limit=speed.token_latency_s < least_s)
    energy = energy_of(meter, outcome)
    return make_record(
        prepared, outcome, started, speed, energy, limits, exactness, page_cache, noise
    )


def _limits_seen_again(
    prepared: Prepared, outcome: Outcome, speed: Speed, host: HostLimits | None
) -> tuple[Limits, HostLimits | None]:
    """The limits with the best that the host did before the point and after it, and what it did
    right after.

    Where it was busy each time, or the point was faster than that, it is asked again a bit later.
    """
    settings, job = prepared.settings, prepared.job
    testbed, system = settings.testbed, settings.system
    limits = point_limits(testbed, system, job, outcome, host)
    if host is None or outcome.status != "ok":
        return limits, None
    first = None
    for pause_s in _PAUSES_S:
        time.sleep(pause_s)
        again = host_limits(testbed, system, job)
        assert again is not None
        first = first or again
        host = host.best(again)
        limits = point_limits(testbed, system, job, outcome, host)
        is_busy = host.busy_cores > BUSY_SHARE * len(available_cpus())
        if not is_busy and not speed.token_latency_s < limits.limit_token_s:  # it may be NaN
            break
    return limits, first


@contextlib.contextmanager
def _step(words: str) -> Iterator[None]:
    """Told with `verbosity=debug`."""
    start = time.monotonic()
    yield
    _LOG.debug("%s took %.2f s", words, time.monotonic() - start)


@contextlib.contextmanager
def _logits_file(is_wanted: bool) -> Iterator[str | None]:
    """Where the master leaves its logits for the comparison."""
    if not is_wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="tpi_bench-") as scratch:
        yield str(Path(scratch) / "logits.pt")


def _answered(outcome: Outcome) -> Outcome:
    """A run that gave no token is an error."""
    generation = outcome.generation
    if outcome.status == "ok" and (generation is None or not generation.token_ids):
        return replace(outcome, status="error", error="rank 0 generated no token")
    return outcome
