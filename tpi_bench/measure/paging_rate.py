"""What paging mapped files in adds to computing where memory is short: one round of a calibration.

The engine itself does it, on a model that is larger than its device: `loading=mmap` under a cap, as
`system=mmap` runs, and once more without. Where memory is short, pages must be taken back for each
that comes, which the rate of direct reads says nothing of. Computing does not hide it: by hand,
with 538 MB of weights in 400 MB, it added 180 to 200 ms to a token as well as to prompts of 8, 50
and 100 tokens, which take 20 to 80 ms in memory.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from pathlib import Path

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Request
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host.interpreter import taken_bytes
from tpi_bench.host.page_cache import drop
from tpi_bench.measure.blocks import made_blocks
from tpi_bench.measure.program_costs import MODEL
from tpi_bench.processes import caps
from tpi_bench.processes.launcher import run_job

_MODEL = replace(MODEL, name="paging", num_layers=16, share_layers=False)
_ROOM_BYTES = 96_000_000  # of 210 MB of weights: what is read again is gone before
_NUM_TOKENS = 5


def paging_rate(cache_dir: Path) -> dict[str, float]:
    """Bytes a second, by the name of `DeviceProfile`. Empty where pages count in no cap here."""
    model = _MODEL.load(cache_dir)
    system = TpiSystem(name="mmap", loading="mmap")
    plan = system.plan(model.config, Site(proportions=[1.0]))
    blocks = made_blocks(model, plan, cache_dir)
    job = Job(
        program=system,
        config=model.config,
        dtype=model.dtype,
        weights=model.weights,
        num_devices=1,
        plan=plan,
        blocks=blocks,
        request=Request(prompt_ids=(1, 2, 3, 4), num_new_tokens=_NUM_TOKENS),
        network=NetworkConfig(),
        threads_per_device=1,
        memory_bytes=(taken_bytes() + _ROOM_BYTES,),
    )
    for path in job.opened_files:  # what is cached already counts in nobody's cap
        drop(path)
    capped = run_job(job)
    if capped.memory_cap in (caps.RESERVED, caps.NOT_ENFORCED):
        return {}
    paging_ns = _token_ns(capped) - _token_ns(run_job(replace(job, memory_bytes=None)))
    if paging_ns <= 0:  # no slower with little memory: others disturbed one of the two
        return {"paging_gb_per_s": math.inf}
    nbytes = sum(block.nbytes for block in blocks[0])
    return {"paging_gb_per_s": nbytes / paging_ns}


def _token_ns(outcome: Outcome) -> float:
    """The median. Raises ValueError where there is none."""
    if outcome.status != "ok" or outcome.generation is None:
        raise ValueError(f"this host could not be calibrated: {outcome.error}")
    times_ns = outcome.generation.token_ns
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times_ns))
