"""Loading a causal model and generating with it as Transformers does, with every token's time.

For systems that run Hugging Face libraries in one process (`baselines/hf_transformers.py`,
`baselines/hf_accelerate.py`). `generate()` as a user would call it; token times come from its
streamer. Imports Transformers, so systems import it on the device only.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tpi_bench.generation import should_stop
from tpi_bench.job import Output
from tpi_bench.runtime import Runtime
from tpi_bench.workload import Generation, Request


def load_model(folder: str, dtype: str, **options: Any) -> Any:
    """The model in a Hugging Face folder; `options` are those of `from_pretrained`."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, **options
    )


def generate(rt: Runtime, model: Any, request: Request, output: Output) -> Generation:
    """Warm up, then answer the request: `generation.generate` for a model of Transformers."""
    warmup_ttft_ns = None
    if request.warmup_tokens:
        warmup = _answer(rt, model, request, request.warmup_tokens, Output())
        warmup_ttft_ns = warmup.token_ns[0] - warmup.request_ns
    result = _answer(rt, model, request, request.num_new_tokens, output)
    result.warmup_ttft_ns = warmup_ttft_ns
    return result


class _Stamp(transformers.generation.streamers.BaseStreamer):
    """First gets the prompt, then each token; the clock is read before anything else."""

    def __init__(self, rt: Runtime, result: Generation, output: Output) -> None:
        self.rt = rt
        self.result = result
        self.output = output
        self.has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if not self.has_prompt:
            self.has_prompt = True
            return
        self.result.token_ns.append(self.rt.now())
        self.result.token_ids.append(int(value[0]))
        if self.output.on_token:
            self.output.on_token(self.result.token_ids[-1])

    def end(self) -> None:
        pass


class _StopLikeTheEngine(transformers.StoppingCriteria):
    """End of sequence and time limit as for every other system."""

    def __init__(self, rt: Runtime, result: Generation, request: Request, limit: int) -> None:
        self.rt = rt
        self.result = result
        self.request = request
        self.limit = limit

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        # Called after sampling and before the streamer has seen the token.
        now = Generation(
            token_ids=[*self.result.token_ids, int(input_ids[0, -1])],
            request_ns=self.result.request_ns,
            token_ns=[*self.result.token_ns, self.rt.now()],
            account=[],
        )
        return torch.tensor([should_stop(self.request, now, self.limit)])


def _answer(rt: Runtime, model: Any, request: Request, limit: int, output: Output) -> Generation:
    result = Generation(token_ids=[], request_ns=0, token_ns=[], account=[])
    if request.sampling.temperature:
        torch.manual_seed(request.sampling.seed)
    config = _generation_config(request, limit)
    model.generation_config = transformers.GenerationConfig()
    prompt = torch.tensor([request.prompt_ids])
    stopping = _StopLikeTheEngine(rt, result, request, limit)
    result.request_ns = rt.now()
    answer = rt.compute(
        ("generate",),
        lambda: model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            streamer=_Stamp(rt, result, output),
            stopping_criteria=transformers.StoppingCriteriaList([stopping]),
        ),
    )
    if output.on_logits and answer.logits:
        for logits in answer.logits:
            output.on_logits(logits[0].float())
    return result


def _generation_config(request: Request, limit: int) -> transformers.GenerationConfig:
    """The request's sampling; when to stop is decided as for every other system."""
    sampling = request.sampling
    return transformers.GenerationConfig(
        max_new_tokens=limit,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or 1.0,
        top_k=sampling.top_k or None,
        top_p=sampling.top_p,
        eos_token_id=None,
        pad_token_id=None,
        return_dict_in_generate=True,
        output_logits=request.keep_logits,
    )
