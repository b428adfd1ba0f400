"""Base class of systems that run Hugging Face libraries in one process: all but loading the model.

They open a Hugging Face folder instead of block files and generate with `generate()`, as a user
would call it; the times of the tokens come from its streamer. The launcher loads systems, so torch
and Transformers are imported on the device alone.
"""

from __future__ import annotations

import contextlib
import functools
import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import BYTES_PER_VALUE, DTYPES, Model, ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.system import System
from tpi_bench.engine.generation import should_stop, warmed_up
from tpi_bench.models.hf_folder import hugging_face_folder

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel

    from tpi_bench.contract.runtime import Runtime


class HuggingFaceSystem(System):
    """One process whatever `testbed.num_devices` says; no network."""

    talks: ClassVar[bool] = False
    max_devices: ClassVar[int | None] = 1
    is_library: ClassVar[bool] = True
    stand_in: ClassVar[str | None] = "system=tpi testbed.num_devices=1"

    @abstractmethod
    def load(self, job: Job) -> PreTrainedModel:
        """The model, on the device; `load_model` does most of it."""

    def plan(self, config: ModelConfig, site: Site) -> None:
        """Nothing is divided."""

    def traffic(self, job: Job) -> Traffic:
        return Traffic()

    def checkpoint_path(self, model: Model, cache_dir: Path) -> Path | None:
        if model.weights != model.dtype:
            raise ValueError(
                f"model.weights={model.weights} with system={self.name}, which holds weights in "
                f"what it computes in; set model.weights={model.dtype}, or take system=tpi, "
                "pipeline, galaxy, mmap, blocking or llamacpp"
            )
        return hugging_face_folder(model, cache_dir)

    def draft_path(self, model: Model, cache_dir: Path) -> Path | None:
        if model.weights not in DTYPES:
            raise ValueError(
                f"workload.draft_weights={model.weights} with system={self.name}, which holds "
                f"weights in what it computes in; choose one of {', '.join(DTYPES)}"
            )
        return hugging_face_folder(model, cache_dir)

    def token_weight_bytes(self, job: Job) -> int:
        """All but the rows that are looked up in an embedding of its own."""
        values = sum(math.prod(shape) for shape in job.config.tensor_shapes().values())
        if not job.config.tied_embeddings:
            values -= job.config.vocab * job.config.hidden
        return values * BYTES_PER_VALUE[self.precision(job.dtype, job.weights)[1]]

    def precision(self, dtype: str, weights: str) -> tuple[str, str]:
        return dtype, dtype

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        # As one computation: importing and loading take a while, and are no sign of a hang.
        model = rt.compute(("load",), functools.partial(self.load, job))
        helping: dict[str, Any] = {}
        if job.draft is not None:
            helping["assistant_model"] = rt.compute(
                ("load",), functools.partial(_load_assistant, job.draft, job.request)
            )
        answer = functools.partial(_answer, rt, model, job.request, helping)
        return warmed_up(job.request, output, answer)


def _load_assistant(draft: Job, request: Request) -> PreTrainedModel:
    """The model that drafts: as many tokens a pass as are asked for, however sure it is of them."""
    assert request.speculation is not None
    model = load_model(draft, draft.weights)
    asked: Any = model.generation_config
    asked.num_assistant_tokens = request.speculation.draft_tokens
    asked.num_assistant_tokens_schedule = "constant"
    asked.assistant_confidence_threshold = 0
    return model


def load_model(job: Job, dtype: str, **options: object) -> PreTrainedModel:
    """The model in the job's folder; `options` are those of `from_pretrained`."""
    import torch
    import transformers

    assert job.checkpoint_path is not None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        job.checkpoint_path, dtype=getattr(torch, dtype), local_files_only=True, **options
    )


def _answer(
    rt: Runtime,
    model: Any,
    request: Request,
    helping: dict[str, Any],
    limit: int,
    output: Output,
) -> Generation:
    """Up to `limit` tokens from the prompt, by a model that can `generate`, and one that helps."""
    import torch
    import transformers

    if request.sampling.temperature:
        torch.manual_seed(request.sampling.seed)
    config = _generation_config(request, limit)
    model.generation_config = transformers.GenerationConfig()
    prompt = torch.tensor([request.prompt_ids])
    stamps = _Stamps(rt, request, limit, output)
    if request.speculation is not None:
        stamps = _StampsOfPasses(rt, request, limit, output)
    with stamps.watching(model):
        answer = rt.compute(
            ("generate",),
            lambda: model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                streamer=stamps,
                stopping_criteria=transformers.StoppingCriteriaList([stamps.is_over]),
                **helping,
            ),
        )
    if output.on_logits and answer.logits:
        for logits in answer.logits[: len(stamps.result.token_ids)]:
            output.on_logits(logits[0].float())
    return stamps.result


class _Stamps:
    """A streamer: it first gets the prompt, then each token; the clock is read before all else."""

    def __init__(self, rt: Runtime, request: Request, limit: int, output: Output) -> None:
        self.result = Generation(token_ids=[], request_ns=rt.now(), token_ns=[], account=[])
        self._rt = rt
        self._request = request
        self._limit = limit
        self._output = output
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if not self._has_prompt:
            self._has_prompt = True
            return
        self.result.token_ns.append(self._rt.now())
        self.result.token_ids.append(int(value[0]))
        if self._output.on_token:
            self._output.on_token(self.result.token_ids[-1])

    def end(self) -> None:
        """All tokens have been put."""

    def watching(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Nothing needs to be seen of the model."""
        return contextlib.nullcontext()

    def is_over(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """A stopping criterion: end of sequence and time limit as for every other system.

        It is asked after sampling and before the streamer has seen the token.
        """
        import torch

        so_far = Generation(
            token_ids=[*self.result.token_ids, int(input_ids[0, -1])],
            request_ns=self.result.request_ns,
            token_ns=[*self.result.token_ns, self._rt.now()],
            account=[],
        )
        return torch.tensor([should_stop(self._request, so_far, self._limit)])


class _StampsOfPasses(_Stamps):
    """Of assisted generation: a pass's tokens come together, and the criteria are asked afterwards.

    How many positions a pass has, and so how many tokens were proposed, is seen at the model.
    """

    _num_positions = 1
    _is_over = False

    def put(self, value: torch.Tensor) -> None:
        if not self._has_prompt:
            self._has_prompt = True
            return
        result, now_ns = self.result, self._rt.now()
        tokens, before = value.flatten().tolist(), len(result.token_ids)
        for token in tokens:
            if self._is_over:  # at a token that ends the answer, which it does not know
                break
            result.token_ns.append(now_ns)
            result.token_ids.append(token)
            if self._output.on_token:
                self._output.on_token(token)
            self._is_over = should_stop(self._request, result, self._limit)
        if before:
            result.proposed.append(self._num_positions - 1)
            result.accepted.append(min(len(tokens) - 1, len(result.token_ids) - before))

    def is_over(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        import torch

        return torch.tensor([self._is_over])

    @contextlib.contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        def see(_model: Any, _given: Any, named: dict[str, Any]) -> None:
            self._num_positions = named["input_ids"].shape[1]

        hook = model.register_forward_pre_hook(see, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def _generation_config(request: Request, limit: int) -> GenerationConfig:
    """The request's sampling; when to stop is decided as for every other system."""
    from transformers import GenerationConfig

    sampling, asked = request.sampling, request.speculation
    looked_up = asked if asked is not None and asked.kind == "lookup" else None
    return GenerationConfig(
        max_new_tokens=limit,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or 1.0,
        top_k=sampling.top_k or None,
        top_p=sampling.top_p,
        eos_token_id=None,
        pad_token_id=None,
        return_dict_in_generate=True,
        output_logits=request.keep_logits,
        prefill_chunk_size=request.prefill_chunk,
        prompt_lookup_num_tokens=looked_up.draft_tokens if looked_up else None,
    )
