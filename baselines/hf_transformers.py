"""Plain Hugging Face Transformers in one process: everyone's baseline, and the oracle.

`generate()` as a user would call it; token times come from its streamer. Needs all weights in
memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpi_bench.job import Job, Output
from tpi_bench.system import LibrarySystem
from tpi_bench.workload import Generation, Request

if TYPE_CHECKING:
    from tpi_bench.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class TransformersSystem(LibrarySystem):
    """`system=transformers`. One process whatever `testbed.num_devices` says; no network."""

    name: str = "transformers"

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        assert job.files is not None
        # As one computation: importing and loading take a while, and are no sign of a hang.
        model = rt.compute(("load",), functools.partial(_load, job.files, job.dtype))
        warmup_ttft_ns = None
        if job.request.warmup_tokens:
            warmup = self._answer(rt, model, job, job.request.warmup_tokens, Output())
            warmup_ttft_ns = warmup.token_ns[0] - warmup.request_ns
        result = self._answer(rt, model, job, job.request.num_new_tokens, output)
        result.warmup_ttft_ns = warmup_ttft_ns
        return result

    def _answer(self, rt: Runtime, model: Any, job: Job, limit: int, output: Output) -> Generation:
        import torch
        import transformers

        from tpi_bench.generation import should_stop

        request, sampling = job.request, job.request.sampling
        result = Generation(token_ids=[], request_ns=0, token_ns=[], account=[])

        class Stamp(transformers.generation.streamers.BaseStreamer):
            """First gets the prompt, then each token; the clock is read before anything else."""

            def __init__(self) -> None:
                self.has_prompt = False

            def put(self, value: torch.Tensor) -> None:
                if not self.has_prompt:
                    self.has_prompt = True
                    return
                result.token_ns.append(rt.now())
                result.token_ids.append(int(value[0]))
                if output.on_token:
                    output.on_token(result.token_ids[-1])

            def end(self) -> None:
                pass

        class StopLikeTheEngine(transformers.StoppingCriteria):
            """End of sequence and time limit as for every other system."""

            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                # Called after sampling and before the streamer has seen the token.
                now = Generation(
                    token_ids=[*result.token_ids, int(input_ids[0, -1])],
                    request_ns=result.request_ns,
                    token_ns=[*result.token_ns, rt.now()],
                    account=[],
                )
                return torch.tensor([should_stop(request, now, limit)])

        if sampling.temperature:
            torch.manual_seed(sampling.seed)
        config = _generation_config(request, limit)
        model.generation_config = transformers.GenerationConfig()
        prompt = torch.tensor([request.prompt_ids])
        result.request_ns = rt.now()
        answer = rt.compute(
            ("generate",),
            lambda: model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                streamer=Stamp(),
                stopping_criteria=transformers.StoppingCriteriaList([StopLikeTheEngine()]),
            ),
        )
        if output.on_logits and answer.logits:
            for logits in answer.logits:
                output.on_logits(logits[0].float())
        return result


def _generation_config(request: Request, limit: int) -> Any:
    """The request's sampling; when to stop is decided as for every other system."""
    import transformers

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


def _load(folder: str, dtype: str) -> Any:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    )
