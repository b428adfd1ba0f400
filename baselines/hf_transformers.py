"""Plain Hugging Face Transformers in one process: everyone's baseline, and the oracle.

Needs all weights in memory: mapped from the checkpoint's files where they have the dtype that is
computed in, else converted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpi_bench.job import Job, Output
from tpi_bench.models import DTYPES
from tpi_bench.system import LibrarySystem
from tpi_bench.workload import Generation

if TYPE_CHECKING:
    from tpi_bench.runtime import Runtime

ATTENTIONS = ("sdpa", "eager")


@dataclass(frozen=True, kw_only=True)
class TransformersSystem(LibrarySystem):
    """`system=transformers`. One process whatever `testbed.num_devices` says; no network.

    `dtype` null is the model's, `threads` null the testbed's.
    """

    name: str = "transformers"
    dtype: str | None = None
    threads: int | None = None
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(
                f"system.dtype={self.dtype} is not supported; choose one of {', '.join(DTYPES)}, "
                "or null for model.dtype"
            )
        if self.threads is not None and (self.threads is True or self.threads < 1):
            raise ValueError(
                f"system.threads={self.threads} must be a whole number of at least 1, or null for "
                "the testbed's"
            )
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"system.attention={self.attention} is unknown; choose one of "
                f"{', '.join(ATTENTIONS)}"
            )

    def compute_dtype(self, model_dtype: str) -> str:
        return self.dtype or model_dtype

    def num_threads(self, offered: int) -> int:
        return self.threads or offered

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        # As one computation: importing and loading take a while, and are no sign of a hang.
        model = rt.compute(("load",), lambda: self._load(job))
        from tpi_bench.hf_generation import generate

        return generate(rt, model, job.request, output)

    def _load(self, job: Job) -> Any:
        from tpi_bench.hf_generation import load_model

        assert job.files is not None
        dtype = self.compute_dtype(job.dtype)
        return load_model(job.files, dtype, attn_implementation=self.attention)
