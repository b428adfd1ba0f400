"""llama.cpp from Python: a GGUF file in, token ids out of llama.cpp's own stream.

It comes as a prebuilt wheel, `xllamacpp`, which holds llama.cpp's server and runs it inside the
process; `llama-cpp-python` does as well, where that is installed. `llamacpp.py` is the system;
neither wheel is imported before a model is opened.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tpi_bench.contract.job import Output
from tpi_bench.contract.request import Generation, Request
from tpi_bench.engine.generation import answer, should_stop

if TYPE_CHECKING:
    import torch
    from xllamacpp import CommonParams

    from tpi_bench.contract.runtime import Runtime

# llama.cpp's defaults: tokens of a prompt that are taken in at once, and that are computed at once.
_BATCH, _COMPUTED_BATCH = 2048, 512
_LOOKED_UP = 2  # last tokens that are searched for in the text, as Transformers does
_NUM_SEEDS = (1 << 32) - 1  # the last 32-bit number asks llama.cpp for a random seed
_MAX_SOCKET_NAME = 100  # the kernel's limit is 104 to 108 characters


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is opened. `cache_type` is what the KV cache holds, F32 or F16.

    `prefill_chunk` is how many tokens of a prompt are computed at once, None: llama.cpp's own.
    `draft_tokens` are checked in one pass, None: no speculation. They are looked up in the text, or
    come of the model in `draft_path`.
    """

    path: str
    vocab: int
    num_positions: int
    num_threads: int
    mmap: bool = True
    flash_attention: bool = False
    cache_type: str = "F32"
    prefill_chunk: int | None = None
    draft_tokens: int | None = None
    draft_path: str | None = None

    @property
    def context_length(self) -> int:
        """llama.cpp rounds up to 256 positions; so it is said how many there are."""
        return -(-self.num_positions // 256) * 256

    @property
    def computed_batch(self) -> int:
        return min(self.prefill_chunk or _COMPUTED_BATCH, self.context_length)


class OpenModel(Protocol):
    """A loaded model."""

    def answer(self, rt: Runtime, request: Request, limit: int, output: Output) -> Generation:
        """Generate up to `limit` tokens from the prompt; nothing is kept from the last answer."""
        ...


def installed_binding() -> str:
    """The module to use. Raises ValueError if there is none."""
    for module in ("xllamacpp", "llama_cpp"):
        if importlib.util.find_spec(module) is not None:
            return module
    raise ValueError(
        "system=llamacpp needs llama.cpp, which is not installed; run pip install -e '.[llamacpp]'"
    )


def open_model(options: Options) -> OpenModel:
    """Load a GGUF file."""
    if installed_binding() == "xllamacpp":
        return _ServerModel(options)
    if options.draft_tokens:
        raise ValueError(
            "workload.speculation needs llama.cpp's server, which llama-cpp-python has not; "
            "run pip install xllamacpp"
        )
    return _PythonModel(options)


class _ServerModel:
    """llama.cpp's server inside this process, with one slot, asked through its Python method."""

    def __init__(self, options: Options) -> None:
        import xllamacpp

        for path in filter(None, (options.path, options.draft_path)):
            _read_ahead(Path(path))
        params = server_params(options)
        # It must listen somewhere. A socket in a private folder that is gone once it has started
        # is one that nobody can reach.
        with tempfile.TemporaryDirectory(prefix="tpi_bench-") as private:
            name = str(Path(private) / "llama.sock")
            params.hostnames = [name if len(name) <= _MAX_SOCKET_NAME else "127.0.0.1"]
            handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
            try:
                self._server = xllamacpp.Server(params)
            except RuntimeError as error:
                raise RuntimeError(f"llama.cpp cannot load {options.path}: {error}") from error
            finally:  # the server puts its own in their place
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def answer(self, rt: Runtime, request: Request, limit: int, output: Output) -> Generation:
        stream = _Stream(rt, request, limit, output)
        while not stream.is_done:
            # llama.cpp ends at every token that it takes for an end, whatever was asked (its
            # `ignore_eos` forbids those tokens instead). The answer then goes on where it was: the
            # cache holds all but that last token.
            so_far = list(stream.result.token_ids)
            body = _request_body(request, limit - len(so_far), so_far)
            rt.compute(
                ("generate",),
                functools.partial(self._server.handle_completions, json.dumps(body), stream.take),
            )
            stream.check(len(so_far))
        return stream.result


class _Stream:
    """Collects what the server sends: one JSON object a token, each stamped as it arrives."""

    def __init__(self, rt: Runtime, request: Request, limit: int, output: Output) -> None:
        self.result = Generation(token_ids=[], request_ns=rt.now(), token_ns=[], account=[])
        self.is_done = False
        self._rt = rt
        self._request = request
        self._limit = limit
        self._output = output
        self._error: Exception | None = None
        self._drafted, self._right = 0, 0  # of this request so far, as it counts them
        self._num_more = 0  # tokens to come of the same pass

    def take(self, message: str) -> bool:
        """Called by the server; True ends the stream. What is raised here it would swallow."""
        now_ns = self._rt.now()
        try:
            return self._take(json.loads(message), now_ns)
        except Exception as error:
            self._error = error
            return True

    def check(self, num_before: int) -> None:
        """After a stream has ended: raise what went wrong in it."""
        if self._error is not None:
            raise self._error
        if len(self.result.token_ids) == num_before:
            raise RuntimeError("llama.cpp ended without a token")

    def _take(self, message: dict[str, Any], now_ns: int) -> bool:
        sent = message.get("__verbose")
        if sent is None:
            raise RuntimeError(f"llama.cpp failed: {message.get('error', message)}")
        for token in sent["tokens"]:
            self._stamp(sent.get("timings", {}), now_ns)
            self.result.token_ids.append(token)
            if self._output.on_token:
                self._output.on_token(token)
            self.is_done = should_stop(self._request, self.result, self._limit)
        # At the limit the server ends by itself, and is then idle.
        return self.is_done and len(self.result.token_ids) < self._limit

    def _stamp(self, counted: dict[str, Any], now_ns: int) -> None:
        """The time of a token. With speculation several come of one pass, all at its time: as many
        more as llama.cpp's count of those that were right has grown by.
        """
        result = self.result
        drafted, right = counted.get("draft_n", 0), counted.get("draft_n_accepted", 0)
        if self._num_more and drafted == self._drafted:
            self._num_more -= 1
            result.token_ns.append(result.token_ns[-1])
            result.accepted[-1] += 1
            return
        if drafted < self._drafted:  # another request, which goes on behind an end
            self._drafted, self._right = 0, 0
        if result.token_ids and self._request.speculation is not None:
            result.proposed.append(drafted - self._drafted)
            result.accepted.append(0)
        self._num_more = right - self._right
        self._drafted, self._right = drafted, right
        result.token_ns.append(now_ns)


def _read_ahead(path: Path) -> None:
    """Bring the file into the page cache, as llama.cpp will.

    It holds Python's lock as long as it loads, and a device that does not answer would be taken for
    one that hangs.
    """
    piece = bytearray(8 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def server_params(options: Options) -> CommonParams:
    """llama.cpp's defaults for one user on the CPU, without what would blur a measurement."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.path
    params.n_ctx = options.context_length
    params.n_batch = min(_BATCH, params.n_ctx)
    params.n_ubatch = options.computed_batch
    params.n_parallel = 1
    params.cpuparams.n_threads = options.num_threads
    params.cpuparams_batch.n_threads = options.num_threads
    params.n_gpu_layers = 0
    params.fit_params = False  # there is nothing to fit, and it loads the model twice
    load = xllamacpp.llama_load_mode
    params.load_mode = load.LLAMA_LOAD_MODE_MMAP if options.mmap else load.LLAMA_LOAD_MODE_NONE
    # Repacked weights are a copy in anonymous memory, of a file that was asked to be mapped.
    params.no_extra_bufts = options.mmap
    attention = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        attention.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if options.flash_attention
        else attention.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    cache_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.cache_type}")
    params.cache_type_k = params.cache_type_v = cache_type
    params.cache_ram_mib = 0  # no prompts are kept
    params.ctx_shift = False
    if options.draft_tokens:
        _speculate(params.speculative, options.draft_tokens, options)
    params.warmup = False  # every system's warm-up is the workload's
    params.verbosity = 1  # errors, on standard error
    params.n_threads_http = 1
    params.endpoint_slots = False
    params.ui = False
    params.chat_template = "chatml"  # not used; the model's own may be one it cannot read
    return params


def _speculate(speculative: Any, draft_tokens: int, options: Options) -> None:
    """So many tokens a pass, however sure it is of them, as the engine drafts."""
    import xllamacpp

    kinds, draft = xllamacpp.common_speculative_type, speculative.draft
    draft.n_max = draft_tokens
    if options.draft_path is None:
        lookup = speculative.ngram_simple
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        lookup.size_n, lookup.size_m, lookup.min_hits = _LOOKED_UP, draft_tokens, 1
        return
    speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    draft.mparams.path = options.draft_path
    draft.n_min, draft.p_min, draft.n_gpu_layers = 0, 0.0, 0
    draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = options.num_threads
    cache_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.cache_type}")
    draft.cache_type_k = draft.cache_type_v = cache_type


def _request_body(request: Request, limit: int, so_far: list[int]) -> dict[str, object]:
    """What llama.cpp is asked. Its cache of earlier prompts is used only to go on."""
    sampling = request.sampling
    body: dict[str, object] = {
        "prompt": [*request.prompt_ids, *so_far],
        "n_predict": limit,
        "stream": True,
        "return_tokens": True,
        "verbose": True,  # the token ids are there
        "timings_per_token": request.speculation is not None,  # and how many were drafted
        "sse_ping_interval": -1,
        "cache_prompt": bool(so_far),
    }
    if sampling.temperature == 0:
        return body | {"samplers": ["top_k"], "top_k": 1}
    return body | {
        "samplers": ["temperature", "top_k", "top_p"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": (sampling.seed + len(so_far)) % _NUM_SEEDS,
    }


class _PythonModel:
    """llama-cpp-python. It gives the logits, so tokens are sampled as in the engine."""

    def __init__(self, options: Options) -> None:
        import llama_cpp

        cache_type = getattr(llama_cpp, f"GGML_TYPE_{options.cache_type}")
        self._vocab = options.vocab
        self._model = llama_cpp.Llama(
            model_path=options.path,
            n_ctx=options.context_length,
            n_batch=min(_BATCH, options.context_length),
            n_ubatch=options.computed_batch,
            n_threads=options.num_threads,
            n_threads_batch=options.num_threads,
            n_gpu_layers=0,
            use_mmap=options.mmap,
            flash_attn=options.flash_attention,
            type_k=cache_type,
            type_v=cache_type,
            verbose=False,
        )

    def answer(self, rt: Runtime, request: Request, limit: int, output: Output) -> Generation:
        result = answer(rt, functools.partial(self._forward, rt), request, limit, output)
        result.account = []
        return result

    def _forward(self, rt: Runtime, new_ids: list[int], position: int) -> torch.Tensor:
        if position == 0:
            self._model.reset()
        return rt.compute(("generate",), functools.partial(self._logits, new_ids))

    def _logits(self, new_ids: list[int]) -> torch.Tensor:
        """Of the last of `new_ids`: (v,) in fp32."""
        import llama_cpp
        import numpy as np
        import torch

        self._model.eval(new_ids)
        row = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        return torch.from_numpy(np.ctypeslib.as_array(row, (self._vocab,)).copy())
