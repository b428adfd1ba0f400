"""What devices of tests are forked with: besides the engine the libraries that it is held against,
and what modelled runs load when they begin.

Their import takes 3 seconds, which every process that needs them would pay again. What a process
starts with is then more than a user's: tests of that have `as_a_user_forks`.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

gc.disable()  # as the user's does, which enables it again

import accelerate.hooks  # noqa: F401
from transformers import (  # noqa: F401
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
)

from tests.helpers.planned import planned_job
from tpi_bench.contract.device import ideal_device
from tpi_bench.measure import round_trip
from tpi_bench.processes import preload  # noqa: F401
from tpi_bench.virtual.run import run_virtual

round_trip._WARM_UP, round_trip._COUNT = 2, 20  # on cores that other tests keep busy
gc.disable()
# What torch loads for the first computation that is traced.
run_virtual(replace(planned_job(), profiles=(ideal_device("any"),)), Path(), cost="modelled")
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 50, 1000)  # as in the tests' own process
gc.enable()
