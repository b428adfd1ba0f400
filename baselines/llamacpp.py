"""The real llama.cpp in one process: what most people would run on these devices.

Its weights are a GGUF file made from the same checkpoint (`tpi_bench/gguf_export.py`), in the
model's own dtype or quantised. It comes as a prebuilt wheel, `xllamacpp`, which holds llama.cpp's
server and runs it inside the process; `llama-cpp-python` does as well, where that is installed.
Token ids go in and come out of llama.cpp's own stream.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import signal
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from tpi_bench.generation import generate, should_stop
from tpi_bench.gguf_export import WEIGHT_TYPES, gguf_path, gguf_tensors, write_gguf
from tpi_bench.job import Job, Output
from tpi_bench.system import LibrarySystem
from tpi_bench.workload import Generation, Request

if TYPE_CHECKING:
    import torch

    from tpi_bench.runtime import Runtime
    from tpi_bench.sources import Model

_WEIGHTS_OF_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_CACHE_TYPES = ("F32", "F16")
# llama.cpp's defaults: tokens of a prompt that are taken in at once, and that are computed at once.
_BATCH, _COMPUTED_BATCH = 2048, 512
_NUM_SEEDS = (1 << 32) - 1  # the last 32-bit number asks llama.cpp for a random seed
_MAX_SOCKET_NAME = 100  # the kernel's limit is 104 to 108 characters


class _Binding(Protocol):
    """A loaded model."""

    def __init__(self, system: LlamaCppSystem, job: Job) -> None: ...

    def answer(self, rt: Runtime, request: Request, limit: int, output: Output) -> Generation:
        """Generate up to `limit` tokens from the prompt; nothing is kept from the last answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class LlamaCppSystem(LibrarySystem):
    """`system=llamacpp`. One process whatever `testbed.num_devices` says; no network.

    `weights` auto is the model's dtype. `mmap` maps the file, as llama.cpp does by default; without
    it the weights are read into memory. `kv_cache` auto is F32 beside F32 weights, so that results
    are those of Transformers, and else llama.cpp's own F16.
    """

    name: str = "llamacpp"
    weights: str = "auto"
    mmap: bool = True
    flash_attention: bool = False
    kv_cache: str = "auto"

    stand_in: ClassVar[str | None] = "system=mmap"
    uses_torch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field, allowed in (
            ("weights", ("auto", *WEIGHT_TYPES)),
            ("kv_cache", ("auto", *_CACHE_TYPES)),
            ("mmap", (True, False)),
            ("flash_attention", (True, False)),
        ):
            value = getattr(self, field)
            if value not in allowed:
                names = ", ".join(str(choice) for choice in allowed)
                raise ValueError(f"system.{field}={value} is not known; choose one of {names}")

    def files(self, model: Model, cache_dir: Path) -> Path | None:
        """The checkpoint as a GGUF file, in the cache."""
        from tpi_bench.helper import in_helper

        _installed_binding()
        weights = self._weight_type(model.dtype)
        gguf_tensors(model.config, weights)
        if getattr(model.checkpoint, "share_layers", False):
            raise ValueError(
                "model.share_layers=true works only with systems that read block files (tpi, "
                "pipeline); set it to false for this system"
            )
        path = gguf_path(cache_dir, model.checkpoint, weights)
        if not path.is_file():
            in_helper(write_gguf, path, model.checkpoint, model.folder, weights)
        return path

    def token_weight_bytes(self, job: Job) -> int:
        tensors = gguf_tensors(job.config, self._weight_type(job.dtype))
        looked_up = set() if job.config.tied_embeddings else {"token_embd.weight"}
        return sum(tensor.nbytes for tensor in tensors if tensor.name not in looked_up)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        binding = _installed_binding()
        open_model: type[_Binding] = _Server if binding == "xllamacpp" else _PythonModel
        # As one computation: loading takes a while, and is no sign of a hang.
        model = rt.compute(("load",), functools.partial(open_model, self, job))
        request = job.request
        warmup_ttft_ns = None
        if request.warmup_tokens:
            warmup = model.answer(rt, request, request.warmup_tokens, Output())
            warmup_ttft_ns = warmup.token_ns[0] - warmup.request_ns
        result = model.answer(rt, request, request.num_new_tokens, output)
        result.warmup_ttft_ns = warmup_ttft_ns
        return result

    def cache_type(self, dtype: str) -> str:
        """What the KV cache holds."""
        if self.kv_cache != "auto":
            return self.kv_cache
        return "F32" if self._weight_type(dtype) == "F32" else "F16"

    def _weight_type(self, dtype: str) -> str:
        return _WEIGHTS_OF_DTYPE[dtype] if self.weights == "auto" else self.weights


def _installed_binding() -> str:
    """The module to use. Raises ValueError if there is none."""
    for module in ("xllamacpp", "llama_cpp"):
        if importlib.util.find_spec(module) is not None:
            return module
    raise ValueError(
        "system=llamacpp needs llama.cpp, which is not installed; run pip install -e '.[llamacpp]'"
    )


class _Server:
    """llama.cpp's server inside this process, with one slot, asked through its Python method."""

    def __init__(self, system: LlamaCppSystem, job: Job) -> None:
        import xllamacpp

        assert job.files is not None
        _read_ahead(Path(job.files))
        params = _server_params(system, job)
        # It must listen somewhere. A socket in a private folder that is gone once it has started
        # is one that nobody can reach.
        with tempfile.TemporaryDirectory(prefix="tpi_bench-") as private:
            name = str(Path(private) / "llama.sock")
            params.hostnames = [name if len(name) <= _MAX_SOCKET_NAME else "127.0.0.1"]
            handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
            try:
                self._server = xllamacpp.Server(params)
            except RuntimeError as error:
                raise RuntimeError(f"llama.cpp cannot load {job.files}: {error}") from error
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
            self.result.token_ns.append(now_ns)
            self.result.token_ids.append(token)
            if self._output.on_token:
                self._output.on_token(token)
            self.is_done = should_stop(self._request, self.result, self._limit)
        # At the limit the server ends by itself, and is then idle.
        return self.is_done and len(self.result.token_ids) < self._limit


def _read_ahead(path: Path) -> None:
    """Bring the file into the page cache, as llama.cpp will.

    It holds Python's lock as long as it loads, and a device that does not answer would be taken for
    one that hangs.
    """
    piece = bytearray(8 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def _server_params(system: LlamaCppSystem, job: Job) -> Any:
    """llama.cpp's defaults for one user on the CPU, without what would blur a measurement."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job.files
    params.n_ctx = _context_length(job.request)
    params.n_batch = min(_BATCH, params.n_ctx)
    params.n_ubatch = min(_COMPUTED_BATCH, params.n_ctx)
    params.n_parallel = 1
    params.cpuparams.n_threads = job.threads_per_device
    params.cpuparams_batch.n_threads = job.threads_per_device
    params.n_gpu_layers = 0
    params.fit_params = False  # there is nothing to fit, and it loads the model twice
    load = xllamacpp.llama_load_mode
    params.load_mode = load.LLAMA_LOAD_MODE_MMAP if system.mmap else load.LLAMA_LOAD_MODE_NONE
    # Repacked weights are a copy in anonymous memory, of a file that was asked to be mapped.
    params.no_extra_bufts = system.mmap
    attention = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        attention.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if system.flash_attention
        else attention.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    cache_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{system.cache_type(job.dtype)}")
    params.cache_type_k = params.cache_type_v = cache_type
    params.cache_ram_mib = 0  # no prompts are kept
    params.ctx_shift = False
    params.warmup = False  # every system's warm-up is the workload's
    params.verbosity = 1  # errors, on standard error
    params.n_threads_http = 1
    params.endpoint_slots = False
    params.ui = False
    params.chat_template = "chatml"  # not used; the model's own may be one it cannot read
    return params


def _context_length(request: Request) -> int:
    """llama.cpp rounds up to 256 positions; so it is said how many there are."""
    return -(-request.length // 256) * 256


def _request_body(request: Request, limit: int, so_far: list[int]) -> dict[str, Any]:
    """What llama.cpp is asked. Its cache of earlier prompts is used only to go on."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "prompt": [*request.prompt_ids, *so_far],
        "n_predict": limit,
        "stream": True,
        "return_tokens": True,
        "verbose": True,  # the token ids are there
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

    def __init__(self, system: LlamaCppSystem, job: Job) -> None:
        import llama_cpp

        cache_type = getattr(llama_cpp, f"GGML_TYPE_{system.cache_type(job.dtype)}")
        num_positions = _context_length(job.request)
        self._vocab = job.config.vocab
        self._model = llama_cpp.Llama(
            model_path=job.files,
            n_ctx=num_positions,
            n_batch=min(_BATCH, num_positions),
            n_ubatch=min(_COMPUTED_BATCH, num_positions),
            n_threads=job.threads_per_device,
            n_threads_batch=job.threads_per_device,
            n_gpu_layers=0,
            use_mmap=system.mmap,
            flash_attn=system.flash_attention,
            type_k=cache_type,
            type_v=cache_type,
            verbose=False,
        )

    def answer(self, rt: Runtime, request: Request, limit: int, output: Output) -> Generation:
        once = replace(request, num_new_tokens=limit, warmup_tokens=0)
        forward = functools.partial(self._forward, rt)
        result = generate(rt, forward, once, output.on_token, output.on_logits)
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
