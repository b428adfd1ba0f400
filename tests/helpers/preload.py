"""What devices of tests are forked with: besides the engine the libraries that it is held against.

Their import takes 3 seconds, which every process that needs them would pay again. What a process
starts with is then more than a user's: tests of that have `as_a_user_forks`.
"""

from __future__ import annotations

import accelerate.hooks  # noqa: F401
from transformers import (  # noqa: F401
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
)

from tpi_bench.processes import preload  # noqa: F401
