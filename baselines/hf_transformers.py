"""Plain Hugging Face Transformers in one process: everyone's baseline, and the oracle.

Needs all weights in memory: mapped from the checkpoint's files where they have the dtype that is
computed in, else converted. `workload.speculation` is its own assisted generation: `lookup` takes
the first place in the text where the last two tokens stand, or the last one; `draft` asks a second
model, which computes in `workload.draft_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baselines.huggingface import HuggingFaceSystem, load_model
from tpi_bench.contract.job import Job
from tpi_bench.contract.model import DTYPES
from tpi_bench.contract.setting import setting
from tpi_bench.contract.speculation import SPECULATIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTIONS = ("sdpa", "eager")


@dataclass(frozen=True, kw_only=True)
class TransformersSystem(HuggingFaceSystem):
    """`system=transformers`. `dtype` null is the model's, `threads` null the testbed's."""

    name: str = setting("transformers", "how rows call it")
    dtype: str | None = setting(
        None, "of this system alone; null is model.dtype", ("null", *DTYPES)
    )
    threads: int | None = setting(None, "of this system alone; null is the testbed's")
    attention: str = setting("sdpa", "how attention is computed", ATTENTIONS)

    speculations: ClassVar[tuple[str, ...]] = SPECULATIONS

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

    @property
    def label(self) -> str:
        return "Transformers" if self.name == "transformers" else self.name

    def precision(self, dtype: str, weights: str) -> tuple[str, str]:
        own = self.dtype or dtype
        return own, own

    def num_threads(self, offered: int) -> int:
        return self.threads or offered

    def load(self, job: Job) -> PreTrainedModel:
        dtype, _ = self.precision(job.dtype, job.weights)
        return load_model(job, dtype, attn_implementation=self.attention)
