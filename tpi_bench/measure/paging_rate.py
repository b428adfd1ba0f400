"""How fast the kernel pages mapped files in where memory is short: one round of a calibration.

The engine itself does it, on a model that is larger than its device: `loading=mmap` under a cap, as
`system=mmap` runs. Where memory is short, pages must be taken back for each that comes, which the
rate of direct reads says nothing of.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from pathlib import Path

from tpi_bench.contract.job import Job
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
    outcome = run_job(job)
    if outcome.memory_cap in (caps.RESERVED, caps.NOT_ENFORCED):
        return {}
    if outcome.status != "ok" or outcome.generation is None:
        raise ValueError(f"this host could not be calibrated: {outcome.error}")
    times_ns = outcome.generation.token_ns
    gaps = [later - earlier for earlier, later in itertools.pairwise(times_ns)]
    nbytes = sum(block.nbytes for block in blocks[0])
    return {"disk_mapped_gb_per_s": nbytes / statistics.median(gaps)}
