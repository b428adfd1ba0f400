"""The real llama.cpp over several devices, by its own RPC backend.

The master runs llama.cpp with the first layers; each other device runs llama.cpp's RPC server, to
which the master sends weights once, and graphs and hidden states with each token. Layers are
divided by `testbed.proportions`, as for `system=pipeline`; hidden states between two servers pass
the master. `llamacpp_rpc_library.py` calls the library that `make llamacpp_rpc` builds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from baselines.llamacpp_rpc_build import build_folder, is_built
from baselines.llamacpp_rpc_library import DividedModel, Library, Options
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import Model, ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import System
from tpi_bench.engine import plans
from tpi_bench.engine.generation import generate
from tpi_bench.models.gguf.writer import WEIGHT_TYPES, gguf_file, gguf_tensors
from tpi_bench.models.quantised import GGUF_TYPES, WEIGHTS_OF_TYPES

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime

_CACHE_TYPES = ("auto", "F32", "F16")
_HEADS = ("last", "master")
_COMPUTED_BATCH = 512  # llama.cpp's default: tokens of a prompt that are computed at once
_MOST_SERVERS = 16  # GGML_RPC_MAX_SERVERS
_VALUE_BYTES = 4  # hidden states travel in fp32


@dataclass(frozen=True, kw_only=True)
class LlamaCppRpcSystem(System):
    """`system=llamacpp_rpc`. `weights`, `mmap`, `flash_attention` and `kv_cache` as in
    `system=llamacpp`; what is mapped is the master's part.
    """

    name: str = setting("llamacpp_rpc", "how rows call it")
    weights: str = setting(
        "auto", "of its GGUF file; auto is model.weights", ("auto", *WEIGHT_TYPES)
    )
    mmap: bool = setting(
        True, "map the master's part of the file; false reads it, and rearranges Q4_0 to be faster"
    )
    flash_attention: bool = setting(False, "compute attention in one fused step")
    kv_cache: str = setting("auto", "auto: F32 beside F32 weights, else F16", _CACHE_TYPES)
    head: str = setting(
        "last",
        "the output head is on the last device, which sends logits (llama.cpp's own way), or on "
        "the master",
        _HEADS,
    )
    library: str | None = setting(
        None, "folder of llama.cpp with RPC; null: where make llamacpp_rpc puts it"
    )

    stand_in: ClassVar[str | None] = "system=pipeline"
    is_library: ClassVar[bool] = True
    uses_torch: ClassVar[bool] = False
    reads_blocks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field, allowed in (
            ("weights", ("auto", *WEIGHT_TYPES)),
            ("kv_cache", _CACHE_TYPES),
            ("head", _HEADS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                names = ", ".join(allowed)
                raise ValueError(f"system.{field}={value} is not known; choose one of {names}")

    @property
    def label(self) -> str:
        return "llama.cpp RPC" if self.name == "llamacpp_rpc" else self.name

    @property
    def variant(self) -> str:
        own = "" if self.weights == "auto" else self.weights
        return f"{own} head on master".strip() if self.head == "master" else own

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        if site.num_devices > _MOST_SERVERS + 1:
            raise ValueError(
                f"testbed.num_devices={site.num_devices} is more than llama.cpp's RPC takes; it "
                f"has at most {_MOST_SERVERS} servers beside the master"
            )
        return plans.layer_parallel(config, site.proportions)

    def traffic(self, job: Job) -> Traffic:
        """A hidden state to each server and back, the last one's way back with the logits."""
        servers, hidden = job.num_devices - 1, job.config.hidden * _VALUE_BYTES
        if servers == 0:
            return Traffic()
        last = job.config.vocab * _VALUE_BYTES if self.head == "last" else hidden
        nbytes = (2 * servers - 1) * hidden + last
        return Traffic(latencies=2 * servers, serial_bytes=nbytes, all_bytes=nbytes)

    def checkpoint_path(self, model: Model, cache_dir: Path) -> Path | None:
        folder = build_folder(self.library)
        if not is_built(folder):
            raise ValueError(
                f"system={self.name} needs llama.cpp built with RPC, which is not in {folder}; run "
                "make llamacpp_rpc (or python -m baselines.llamacpp_rpc_build), some minutes"
            )
        return gguf_file(model, cache_dir, self._weight_type(model.weights))

    def precision(self, dtype: str, weights: str) -> tuple[str, str]:
        return dtype, WEIGHTS_OF_TYPES[self._weight_type(weights)]

    def token_weight_bytes(self, job: Job) -> int:
        tensors = gguf_tensors(job.config, self._weight_type(job.weights))
        looked_up = set() if job.config.tied_embeddings else {"token_embd.weight"}
        return sum(tensor.nbytes for tensor in tensors if tensor.name not in looked_up)

    def server(self, job: Job, rank: int) -> Callable[[int], None] | None:
        if rank == 0:
            return None
        library = Library(build_folder(self.library))
        return functools.partial(library.serve, job.threads_per_device)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        import torch

        word = torch.zeros(1, dtype=torch.int64)
        if rt.rank:
            rt.recv(0, word)  # the master is done; the server runs beside
            return None
        # As one computation: loading takes a while, and is no sign of a hang.
        model = rt.compute(("load",), functools.partial(self._open, rt, job))

        def forward(new_ids: list[int], position: int) -> torch.Tensor:
            return rt.compute(("generate",), functools.partial(model.logits, new_ids, position))

        generation = generate(rt, forward, job.request, output)
        generation.account = []  # what of it computes and what waits, the library does not tell
        for rank in range(1, rt.world_size):
            rt.send(rank, word)
        model.close()
        return generation

    def _open(self, rt: Runtime, job: Job) -> DividedModel:
        assert job.checkpoint_path is not None
        assert job.plan is not None
        counts = (sum(shard.kind == "attn" for shard in shards) for shards in job.plan.shards)
        cache_type = self.kv_cache
        if cache_type == "auto":
            cache_type = "F32" if self._weight_type(job.weights) == "F32" else "F16"
        options = Options(
            path=job.checkpoint_path,
            servers=tuple(rt.address(rank) for rank in range(1, rt.world_size)),
            layers=tuple(counts),
            vocab=job.config.vocab,
            num_positions=job.request.length,
            most_new=min(job.request.prefill_chunk or _COMPUTED_BATCH, _COMPUTED_BATCH),
            num_threads=job.threads_per_device,
            mmap=self.mmap,
            flash_attention=self.flash_attention,
            cache_type=cache_type,
            head_on_master=self.head == "master",
        )
        return DividedModel(Library(build_folder(self.library)), options)

    def _weight_type(self, model_weights: str) -> str:
        return GGUF_TYPES[model_weights] if self.weights == "auto" else self.weights
