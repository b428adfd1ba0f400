"""llama.cpp with its RPC backend, through the C interface of a build of our own.

`llamacpp_rpc_build.py` makes the build; `llamacpp_rpc.py` is the system. The build is a folder with
the package `llama_cpp` (llama-cpp-python), of which only the declarations and the libraries are
used: it is not installed, and nothing else of it is imported.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.contract.runtime import Explained

if TYPE_CHECKING:
    import torch

_CPU, _ERROR = 0, 4  # of ggml's kinds of devices, and of its levels of messages
_BY_LAYERS = 1  # LLAMA_SPLIT_MODE_LAYER
_MMAP, _READ = "LLAMA_LOAD_MODE_MMAP", "LLAMA_LOAD_MODE_NONE"
_ENDS = rb"^(output|token_embd)\.weight$"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is opened and divided: `layers[0]` of them are the master's own, the others on
    `servers` (HOST:PORT) in their order. `head_on_master` also keeps the output head.
    """

    path: str
    servers: tuple[str, ...]
    layers: tuple[int, ...]
    vocab: int
    num_positions: int
    most_new: int
    num_threads: int
    mmap: bool
    flash_attention: bool
    cache_type: str
    head_on_master: bool


class _Override(ctypes.Structure):
    """`llama_model_tensor_buft_override`."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class Library:
    """The libraries of a build, loaded into this process."""

    def __init__(self, folder: Path) -> None:
        os.environ["GGML_NO_BACKTRACE"] = "1"  # it would start a debugger
        self.llama = _declarations(folder)
        libraries = folder / "llama_cpp" / "lib"
        self.ggml = ctypes.CDLL(str(libraries / "libggml.so"))
        self.rpc = ctypes.CDLL(str(libraries / "libggml-rpc.so"))
        for function in (
            self.ggml.ggml_backend_dev_by_type,
            self.ggml.ggml_backend_reg_dev_get,
            self.ggml.ggml_backend_cpu_buffer_type,
            self.rpc.ggml_backend_rpc_add_server,
        ):
            function.restype = ctypes.c_void_p
        self._hear_errors()

    def serve(self, num_threads: int, port: int) -> None:
        """Compute for a client at `port` of loopback, on this process's CPU. Does not return."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # it greets on standard output
        cpu = self.ggml.ggml_backend_dev_by_type(_CPU)
        devices = (ctypes.c_void_p * 1)(cpu)
        start = self.rpc.ggml_backend_rpc_start_server
        start.argtypes = (ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_size_t] * 2, ctypes.c_void_p)
        start(f"127.0.0.1:{port}".encode(), None, num_threads, 1, devices)

    def remote_device(self, server: str) -> int:
        """The device that a server offers. Raises Explained."""
        registry = self.rpc.ggml_backend_rpc_add_server(server.encode())
        if not registry:
            raise Explained(f"llama.cpp cannot reach its RPC server at {server}: {self.last_error}")
        self.ggml.ggml_backend_register(ctypes.c_void_p(registry))
        return int(
            self.ggml.ggml_backend_reg_dev_get(ctypes.c_void_p(registry), ctypes.c_size_t(0))
        )

    @property
    def last_error(self) -> str:
        return self._errors[-1] if self._errors else "it gave no reason"

    def _hear_errors(self) -> None:
        """Only errors are kept; the rest would fill standard error."""
        self._errors: list[str] = []

        def hear(level: int, text: bytes, data: Any) -> None:
            if level == _ERROR:
                self._errors.append(text.decode(errors="replace").strip())

        self._hear = self.llama.llama_log_callback(hear)
        self.llama.llama_log_set(self._hear, None)


class DividedModel:
    """A model over the servers' memory and this process's, with its KV cache."""

    def __init__(self, library: Library, options: Options) -> None:
        self._library, self._options = library, options
        llama = self._llama = library.llama
        llama.llama_backend_init()
        model_params = self._model_params()
        self._model = llama.llama_model_load_from_file(options.path.encode(), model_params)
        if not self._model:
            raise Explained(f"llama.cpp cannot load {options.path}: {library.last_error}")
        self._context = llama.llama_init_from_model(self._model, self._context_params())
        if not self._context:
            raise Explained(f"llama.cpp cannot make a KV cache: {library.last_error}")
        self._memory = llama.llama_get_memory(self._context)

    def logits(self, new_ids: Sequence[int], position: int) -> torch.Tensor:
        """Of the last of `new_ids`, the first of which is at `position`: (v,) in fp32."""
        import numpy as np
        import torch

        llama = self._llama
        llama.llama_memory_seq_rm(self._memory, 0, position, -1)
        tokens = (ctypes.c_int32 * len(new_ids))(*new_ids)
        status = llama.llama_decode(self._context, llama.llama_batch_get_one(tokens, len(new_ids)))
        if status:
            raise Explained(f"llama.cpp failed ({status}): {self._library.last_error}")
        row = llama.llama_get_logits_ith(self._context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(row, (self._options.vocab,)).copy())

    def close(self) -> None:
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def _model_params(self) -> Any:
        """How the layers are divided; what the structure points to is kept."""
        llama, options = self._llama, self._options
        params = llama.llama_model_default_params()
        others = options.layers[1:]
        params.n_gpu_layers = 0
        params.split_mode = _BY_LAYERS
        params.load_mode = getattr(llama, _MMAP if options.mmap else _READ)
        # Repacked weights are a copy in anonymous memory, of a file that was asked to be mapped.
        params.use_extra_bufts = not options.mmap
        if not others:
            return params
        remote = [self._library.remote_device(server) for server in options.servers]
        self._devices = (ctypes.c_void_p * (len(remote) + 1))(*remote, None)
        params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        # The last so many layers go to the devices. The output counts as one behind them.
        counts = [*others[:-1], others[-1] + 1]
        params.n_gpu_layers = sum(counts)
        self._split = (ctypes.c_float * llama.llama_max_devices())(*counts)
        params.tensor_split = self._split
        if options.head_on_master:
            here = self._library.ggml.ggml_backend_cpu_buffer_type()
            self._overrides = (_Override * 2)(_Override(_ENDS, here), _Override(None, None))
            params.tensor_buft_overrides = ctypes.cast(self._overrides, ctypes.c_void_p)
        return params

    def _context_params(self) -> Any:
        llama, options = self._llama, self._options
        params = llama.llama_context_default_params()
        params.n_ctx = -(-options.num_positions // 256) * 256
        params.n_batch = params.n_ctx
        params.n_ubatch = min(options.most_new, params.n_ctx)
        params.n_threads = params.n_threads_batch = options.num_threads
        params.flash_attn_type = int(options.flash_attention)
        cache_type = getattr(llama, f"GGML_TYPE_{options.cache_type}")
        params.type_k = params.type_v = cache_type
        params.no_perf = True
        return params


def _declarations(folder: Path) -> Any:
    """`llama_cpp.llama_cpp` without the package around it, which needs more than is here."""
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(folder / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")
