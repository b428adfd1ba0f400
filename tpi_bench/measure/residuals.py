"""The engine's own small runs against virtual time: one round of a calibration (`calibrate.py`).

They are made again in virtual time, by the numbers of the same round. What they really took, of
that, is a residual: runs differ by it from minute to minute, and from precision to precision, which
rounds have in turns. An interval of a prediction is true only with that in it.

What two windows get of one disk is taken from such a run: of a disk of ours two readers that did
nothing else got as much as one, and two windows 0.85 of that, whose devices also compute, send and
run Python. Why was not isolated: it is a fit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.request import Generation
from tpi_bench.host.fork import in_helper
from tpi_bench.measure.core_rates import product_rates, products_of
from tpi_bench.measure.disk_rates import BY_PROBE
from tpi_bench.measure.metrics import times_s
from tpi_bench.measure.program_costs import EngineRun, EngineRuns

_MOST = 4.0  # times the rate of a reader that does nothing else, or so small a part of it


def shared_disk_rate(run: EngineRun, found: DeviceProfile, cache_dir: Path) -> dict[str, float]:
    """What devices with windows get together of one disk, by the name of `DeviceProfile`.

    At the rate of one reader that does nothing else virtual time has a token; what it took more,
    its bytes took.
    """
    then = _at_its_disk(run, found)
    _, taken_s = times_s(run.generation)
    _, expected_s = times_s(_predicted(run, found, cache_dir))
    alone_s = run.token_bytes / then.disk_bps
    together_s = min(max(alone_s + taken_s - expected_s, alone_s / _MOST), alone_s * _MOST)
    return {"disk_shared_gb_per_s": found.disk_gb_per_s * alone_s / together_s}


def residuals(runs: EngineRuns, found: DeviceProfile, cache_dir: Path) -> dict[str, float]:
    """Ratios, by the names of `contract.rounds.RESIDUALS`."""
    now = _at_its_products(runs.held_in.job, found)
    prompt, token = _missed(runs.held_in, now, cache_dir)
    _, streamed = _missed(runs.alone_in, now, cache_dir)
    return {"prompt_residual": prompt, "token_residual": token, "disk_residual": streamed}


def _at_its_products(job: Job, found: DeviceProfile) -> DeviceProfile:
    """A device with the rates of the job's own matrices, as a point's twin has them."""
    rates = in_helper(product_rates, *products_of(job, found))
    return replace(found, **rates)  # type: ignore[arg-type]  # all of them are rates


def _missed(run: EngineRun, found: DeviceProfile, cache_dir: Path) -> tuple[float, float]:
    """TTFT and token latency over what virtual time has for them."""
    taken_s, expected_s = times_s(run.generation), times_s(_predicted(run, found, cache_dir))
    return taken_s[0] / expected_s[0], taken_s[1] / expected_s[1]


def _predicted(run: EngineRun, found: DeviceProfile, cache_dir: Path) -> Generation:
    """The same on devices of these numbers, which have one disk and one memory."""
    profiles = (_at_its_disk(run, found),) * run.job.num_devices
    job = replace(run.job, profiles=profiles, trace=False)
    outcome = in_helper(_run_virtual, job, cache_dir)
    if outcome.generation is None:
        raise ValueError(f"this host could not be calibrated: {outcome.error}")
    return outcome.generation


def _at_its_disk(run: EngineRun, found: DeviceProfile) -> DeviceProfile:
    """The devices, with a disk as it was probed beside the run."""
    if found.disk_probe_gb_per_s is None:
        return found
    factor = run.probed_gb_per_s / found.disk_probe_gb_per_s
    rates = {name: getattr(found, name) for name in BY_PROBE}
    changed = {name: factor * rate for name, rate in rates.items() if rate is not None}
    return replace(found, **changed)


def _run_virtual(job: Job, cache_dir: Path) -> Outcome:
    from tpi_bench.virtual.run import run_virtual

    return run_virtual(job, cache_dir, cost="modelled", shares_disk=True, shares_memory=True)
