"""The real llama.cpp in one process: what most people would run on these devices.

Its weights are a GGUF file made from the same checkpoint (`tpi_bench/models/gguf/`), in the model's
own dtype or quantised. `llamacpp_bindings.py` opens the file and asks llama.cpp for tokens.
`workload.speculation` is its own: `lookup` (`ngram-simple`) drafts what followed the last two
tokens elsewhere in the text, `draft` (`draft-simple`) asks a second file, `workload.draft_model`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from baselines.llamacpp_bindings import Options, installed_binding, open_model
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import Model, ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Generation
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS
from tpi_bench.contract.system import System
from tpi_bench.engine.generation import warmed_up
from tpi_bench.models.gguf.writer import WEIGHT_TYPES, gguf_file, gguf_tensors
from tpi_bench.models.quantised import GGUF_TYPES, WEIGHTS_OF_TYPES

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import Runtime

_CACHE_TYPES = ("F32", "F16")


@dataclass(frozen=True, kw_only=True)
class LlamaCppSystem(System):
    """`system=llamacpp`. One process whatever `testbed.num_devices` says; no network.

    `weights` auto is `model.weights`. `mmap` maps the file, as llama.cpp does by default; without
    it the weights are read into memory. `kv_cache` auto is F32 beside F32 weights, so that results
    are those of Transformers, and else llama.cpp's own F16.
    """

    name: str = setting("llamacpp", "how rows call it")
    weights: str = setting(
        "auto", "of its GGUF file; auto is model.weights", ("auto", *WEIGHT_TYPES)
    )
    mmap: bool = setting(
        True, "map the file; false reads it into memory, where Q4_0 is rearranged to be faster"
    )
    flash_attention: bool = setting(False, "compute attention in one fused step")
    kv_cache: str = setting(
        "auto", "auto: F32 beside F32 weights, else F16", ("auto", *_CACHE_TYPES)
    )

    talks: ClassVar[bool] = False
    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS
    max_devices: ClassVar[int | None] = 1
    is_library: ClassVar[bool] = True
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

    @property
    def label(self) -> str:
        return "llama.cpp" if self.name == "llamacpp" else self.name

    @property
    def variant(self) -> str:
        return "" if self.weights == "auto" else self.weights

    def plan(self, config: ModelConfig, site: Site) -> None:
        """Nothing is divided."""

    def traffic(self, job: Job) -> Traffic:
        return Traffic()

    def checkpoint_path(self, model: Model, cache_dir: Path) -> Path | None:
        installed_binding()
        return gguf_file(model, cache_dir, self._weight_type(model.weights))

    def draft_path(self, model: Model, cache_dir: Path) -> Path | None:
        """In the type of `workload.draft_weights`, whatever `weights` says of the model itself."""
        return gguf_file(model, cache_dir, GGUF_TYPES[model.weights])

    def precision(self, dtype: str, weights: str) -> tuple[str, str]:
        held = self._weight_type(weights)
        return dtype, WEIGHTS_OF_TYPES[held]

    def token_weight_bytes(self, job: Job) -> int:
        tensors = gguf_tensors(job.config, self._weight_type(job.weights))
        looked_up = set() if job.config.tied_embeddings else {"token_embd.weight"}
        return sum(tensor.nbytes for tensor in tensors if tensor.name not in looked_up)

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        # As one computation: loading takes a while, and is no sign of a hang.
        model = rt.compute(("load",), functools.partial(open_model, self._options(job)))
        return warmed_up(job.request, output, functools.partial(model.answer, rt, job.request))

    def _options(self, job: Job) -> Options:
        assert job.checkpoint_path is not None
        cache_type, speculation = self.kv_cache, job.request.speculation
        if cache_type == "auto":
            cache_type = "F32" if self._weight_type(job.weights) == "F32" else "F16"
        return Options(
            path=job.checkpoint_path,
            vocab=job.config.vocab,
            num_positions=job.request.length,
            num_threads=job.threads_per_device,
            mmap=self.mmap,
            flash_attention=self.flash_attention,
            cache_type=cache_type,
            prefill_chunk=job.request.prefill_chunk,
            draft_tokens=None if speculation is None else speculation.draft_tokens,
            draft_path=None if job.draft is None else job.draft.checkpoint_path,
        )

    def _weight_type(self, model_weights: str) -> str:
        return GGUF_TYPES[model_weights] if self.weights == "auto" else self.weights
