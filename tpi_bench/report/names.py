"""How rows are called in tables and legends: a system's own label, and what sets it apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


# What tells lines apart when it varies among the rows, and how it is written.
_VARYING = {
    "num_devices": "{:.0f} devices",
    "model": "{}",
    "dtype": "{}",
    "weights": "{} weights",
    "topology": "{}",
    "bandwidth_mbps": "{:g} Mbit/s",
    "jitter_ms": "jitter {:g} ms",
    "threads_per_device": "{:.0f} threads",
    "system_loading": "{} loading",
    "system_planner": "{} planner",
    "system_mmap": "mmap {}",
    "system_attention": "{} attention",
    "system_dtype": "in {}",
    "memory_mb": "{:.0f} MB",
    "cache": "{} cache",
    "prompt_tokens": "prompt {:.0f}",
    "num_tokens_asked": "{:.0f} tokens",
    "workload": "{}",
    "speculation": "speculation {}",
    "draft_tokens": "{:.0f} drafted",
    "draft_model": "by {}",
    "acceptance_asked": "acceptance {:g}",
}


_FAMILIES = {
    "llama": "Llama ",
    "qwen": "Qwen ",
    "yi": "Yi",
    "smollm": "SmolLM",
    "tinyllama": "TinyLlama",
}
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "q8": "q8", "q4": "q4"}


def model_name(model: str) -> str:
    """As people write it: `llama2_70b` is Llama 2-70B; others stay as they are."""
    found = re.fullmatch(r"(tinyllama|llama|qwen|yi|smollm)([\d.]*)_([\d.]+[bm])", model)
    if found is None:
        return model
    family, version, size = found.groups()
    name = f"{_FAMILIES[family]}{version}".rstrip()
    return f"{name}-{size.upper()}"


def device_name(devices: str) -> str:
    """Of a row's `device`: the emulated devices of TPI-LLM's paper are called so."""
    found = re.fullmatch(r"(?:(\d+) x )?paper_emulated", str(devices))
    if found is None:
        return str(devices)
    count = found.group(1) or "1"
    return f"{count} of the paper's devices" if count != "1" else "one of the paper's devices"


def precision_name(weights: str) -> str:
    """`fp32` of float32."""
    return PRECISIONS.get(weights, weights)


def system_name(row: Mapping[Any, Any]) -> str:
    """How a run's system is named, without how many devices it has."""
    return f"{row['label']} {row['variant']}".rstrip()


def system_label(row: Mapping[Any, Any]) -> str:
    """How a run's system is named in tables and legends of several devices."""
    is_alone = row["is_library"] and row["num_devices"] == 1
    return f"{system_name(row)}, 1 device" if is_alone else system_name(row)


def labels(rows: pd.DataFrame, along: Sequence[str] = ()) -> list[str]:
    """A line's name for each row: its system, and whatever differs within that system.

    `along` names columns that are an axis of the figure and so no part of a line's name.
    """
    names = [system_label(row) for row in rows.to_dict("records")]
    for column, pattern in _VARYING.items():
        if column not in rows or column in along:
            continue
        kinds = rows[column].groupby(names).transform("nunique")
        values = rows[column].tolist()
        names = [
            f"{name}, {_singular(pattern.format(value))}" if count > 1 else name
            for name, value, count in zip(names, values, kinds, strict=True)
        ]
    return names


def counted(count: int | None, one: str, several: str | None = None) -> str:
    """`1 way is` or `3 ways are`: a count with words that go with it, by default with an s."""
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def _singular(words: str) -> str:
    return words.removesuffix("s") if words.startswith("1 ") else words
