"""Hugging Face Accelerate in one process: models larger than memory, by offload to disk.

Accelerate's hooks bring the weights of a module in before it computes and let them go afterwards;
input embedding, last norm and LM head stay in memory. Nothing is read ahead.

`offload: disk` is `from_pretrained` with a device map, as its documentation says. From safetensors,
Transformers 5 gives Accelerate an index that points into the checkpoint's own files: nothing is
written, and no offload folder is needed. Where the checkpoint has the dtype that is computed in, a
weight is a view of the mapped file, and loading reads only what stays in memory; else every weight
is read once while loading and converted at every use. Of the ways the libraries offer it was the
fastest and smallest: `disk_offload` first loads the whole model, and it and
`load_checkpoint_and_dispatch` write every weight once more and copy it at every use (TinyLlama in
fp32 with 1.5 GB of memory: 6.5 s a token and 0.83 GB of anonymous memory against 3.5 s and 0.27 GB;
both with `_give_freed_memory_back`). Bringing in a layer at a time changed nothing.

The kernel's page cache keeps what fits of the files. Only where a device's memory is capped below
the model's size does every token read them from the disk.

`offload: cpu` is `cpu_offload` of every layer: what the hooks themselves cost. `offload: auto` is
`device_map="auto"`, as most users call it: what fits in the device's memory stays there, and only
the rest is on the disk.
"""

from __future__ import annotations

import ctypes
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import psutil

from baselines.huggingface import HuggingFaceSystem, load_model
from tpi_bench.contract.job import Job
from tpi_bench.contract.setting import setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OFFLOADS = ("disk", "cpu", "auto")
_MODEL_SHARE = 0.75  # of the free memory, with `auto`; the rest is for layers that come in
_IN_MEMORY = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


@dataclass(frozen=True, kw_only=True)
class AccelerateSystem(HuggingFaceSystem):
    """`system=accelerate`."""

    name: str = setting("accelerate", "how rows call it")
    offload: str = setting(
        "disk",
        "where decoder layers are while they do not compute; auto keeps what fits",
        OFFLOADS,
        common=True,
    )

    stand_in: ClassVar[str | None] = "system=faulted"

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise ValueError(
                f"system.offload={self.offload} is unknown; choose one of {', '.join(OFFLOADS)}"
            )

    @property
    def label(self) -> str:
        return "Accelerate" if self.name == "accelerate" else self.name

    @property
    def variant(self) -> str:
        return "" if self.offload == "disk" else self.offload

    def load(self, job: Job) -> PreTrainedModel:
        logging.getLogger("accelerate").setLevel(logging.ERROR)  # it warns of every offload
        if self.offload == "cpu":
            return _with_layers_on_cpu(load_model(job, job.dtype))
        _give_freed_memory_back()
        if self.offload == "auto":
            free = job.free_of(0)
            most = psutil.virtual_memory().available if math.isinf(free) else _MODEL_SHARE * free
            return load_model(
                job, job.dtype, device_map="auto", max_memory={"cpu": max(1, round(most))}
            )
        layers = [f"model.layers.{i}" for i in range(job.config.num_layers)]
        device_map = dict.fromkeys(_IN_MEMORY, "cpu") | dict.fromkeys(layers, "disk")
        return load_model(job, job.dtype, device_map=device_map)


def _give_freed_memory_back() -> None:
    """As MALLOC_MMAP_THRESHOLD_ in the environment: tensors from 1 MiB on are mapped one by one.

    Weights that are converted at every use are allocated and freed all the time. glibc 2.36, left
    alone, ended with 0.2 to 0.6 GB in holes it does not use again, for a model of 0.4 GB in fp32,
    and was killed with 0.4 GB of memory, where 0.1 GB does; the price is fresh pages at every use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc alone
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _with_layers_on_cpu(model: PreTrainedModel) -> PreTrainedModel:
    import accelerate
    import torch

    for layer in model.model.layers:
        accelerate.cpu_offload(layer, execution_device=torch.device("cpu"))
    return model
