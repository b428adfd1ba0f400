"""The reads alone: what a token streams, once a token, through a window and none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from baselines.reads import ReadsSystem
from tests.helpers.models_zoo import prompt_of
from tests.helpers.running import make_job, run_ok
from tpi_bench.contract.request import Request
from tpi_bench.engine.tpi import TpiSystem

REQUEST = Request(prompt_ids=prompt_of(5), num_new_tokens=4, warmup_tokens=0)


@pytest.mark.parametrize("through", ["window", "nothing"])
def test_a_token_reads_what_it_streams(
    through: str, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    system = ReadsSystem(window=2, through=through)
    job = make_job(system, checkpoints["gqa"], cache_dir, num_devices=2, request=REQUEST)
    outcome = run_ok(replace(job, trace=True))
    assert outcome.generation is not None
    assert len(outcome.generation.token_ns) == 4
    for device in outcome.devices:
        own = job.blocks[device.rank]
        streamed = system.streaming(job, device.rank)
        assert streamed == TpiSystem(window=2).streaming(job, device.rank)
        ahead = device.weight_bytes_read - 4 * streamed.streamed_bytes - streamed.kept_bytes
        assert 0 <= ahead <= 4 * max(block.nbytes for block in own)  # for a token nobody asks for
        kinds = {span.kind for span in device.spans}
        assert "load_wait" in kinds
        assert "compute" not in kinds


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"system.through=air is unknown; choose one of window, "):
        ReadsSystem(through="air")
    with pytest.raises(ValueError, match=r"system.loading=mmap with system=reads, which reads"):
        ReadsSystem(window="off", loading="mmap")
