"""Quantised matrices: the numbers of GGUF's Q8_0 and Q4_0, in the order in which kernels read them.

A row is cut in groups of 32 values with one float16 scale; a value is its scale times a whole
number. GGUF packs each group's scale before its numbers; in block files all numbers of a matrix lie
together and its scales apart, so that a kernel reads two plain arrays. The sharder, the GGUF writer
and the oracle's folder all take rows from here, so they hold the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench.contract.model import GROUP, QUANTISED, Checkpoint, ModelConfig
from tpi_bench.contract.plan import Range

if TYPE_CHECKING:
    import numpy as np
    import torch

# What GGUF calls each type that weights are held in.
GGUF_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "q8": "Q8_0",
    "q4": "Q4_0",
}
WEIGHTS_OF_TYPES = {kind: weights for weights, kind in GGUF_TYPES.items()}
_SCALE_BYTES = 2
_NUMBER_BYTES = {"q8": GROUP, "q4": GROUP // 2}  # of a group


def refuse_cut_groups(config: ModelConfig, weights: str) -> None:
    """Raises ValueError for a model with rows that are no whole number of groups."""
    if weights not in QUANTISED:
        return
    for name, shape in config.tensor_shapes().items():
        if len(shape) > 1 and shape[1] % GROUP:
            raise ValueError(
                f"model.weights={weights} are groups of {GROUP} values, and {name} has rows of "
                f"{shape[1]}; choose float32, float16 or bfloat16 for this model"
            )


def packed_rows(
    checkpoint: Checkpoint, name: str, rows: Range, weights: str, cols: Range | None = None
) -> np.ndarray:
    """Rows of a matrix in q8 or q4 as GGUF packs them: uint8 (n, bytes of a row).

    The checkpoint's own numbers where it has them in this type, else quantised. Columns are cut at
    multiples of a group.
    """
    import numpy as np

    packed = checkpoint.packed_rows(name, *rows, weights)
    if packed is not None:
        group_bytes = _SCALE_BYTES + _NUMBER_BYTES[weights]
        first, last = (None, None) if cols is None else (c // GROUP * group_bytes for c in cols)
        return np.ascontiguousarray(packed[:, first:last])
    values = checkpoint.read_rows(name, *rows).float().numpy()
    return pack(np.ascontiguousarray(values if cols is None else values[:, slice(*cols)]), weights)


def held_rows(
    checkpoint: Checkpoint, name: str, rows: Range, held: str, cols: Range | None = None
) -> torch.Tensor:
    """Rows of a tensor with the values that they have when held in `held`; q8 and q4 in fp32."""
    import gguf
    import torch
    from gguf.quants import dequantize

    if held in QUANTISED:
        packed = packed_rows(checkpoint, name, rows, held, cols)
        kind = gguf.GGMLQuantizationType[GGUF_TYPES[held]]
        return torch.from_numpy(dequantize(packed, kind))
    values: torch.Tensor = checkpoint.read_rows(name, *rows)
    return (values if cols is None else values[:, slice(*cols)]).to(getattr(torch, held))


def pack(values: np.ndarray, weights: str) -> np.ndarray:
    """fp32 rows (n, i) quantised to q8 or q4 -> GGUF's rows."""
    import gguf
    from gguf.quants import quantize

    return quantize(values, gguf.GGMLQuantizationType[GGUF_TYPES[weights]])


def unpack(packed: np.ndarray, weights: str) -> tuple[np.ndarray, np.ndarray]:
    """GGUF's rows -> numbers, int8 (n, i) or uint8 (n, i / 2), and scales (n, i / 32) in fp16.

    In a group of 4-bit numbers, byte j holds value j in its low half and value j + 16 in the high
    one, both plus 8.
    """
    import numpy as np

    groups = packed.reshape(packed.shape[0], -1, _SCALE_BYTES + _NUMBER_BYTES[weights])
    scales = np.ascontiguousarray(groups[:, :, :_SCALE_BYTES]).view(np.float16)[:, :, 0]
    numbers = np.ascontiguousarray(groups[:, :, _SCALE_BYTES:]).reshape(packed.shape[0], -1)
    return numbers.view(np.int8) if weights == "q8" else numbers, np.ascontiguousarray(scales)
