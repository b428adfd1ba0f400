"""llama.cpp on a checkpoint, in real device processes as the application does, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from baselines.llamacpp import LlamaCppSystem
from tests.helpers.models_zoo import prompt_of
from tests.helpers.running import make_job, model_of, run_ok
from tpi_bench.contract.request import Generation, Request

NUM_NEW = 64


def generate(system: LlamaCppSystem, folder: Path, cache_dir: Path, **request: Any) -> Generation:
    """The answer to a request whose prompt has 20 tokens unless told otherwise."""
    asked = Request(**({"prompt_ids": prompt_of(20), "num_new_tokens": NUM_NEW} | request))
    job = make_job(system, folder, cache_dir, num_devices=1, request=asked)
    path = system.checkpoint_path(model_of(folder), cache_dir)
    found = run_ok(replace(job, checkpoint_path=str(path))).generation
    assert found is not None
    return found
