"""RoPE scaling as GGUF files have it: a factor, or for Llama 3.1 and later a factor a frequency."""

from __future__ import annotations

import numpy as np

from tpi_bench.contract.model import Rope

# What every Llama 3.1 to 3.3 has; a file tells the factors that come of it and not these.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def rope_factors(rope: Rope, head_dim: int) -> np.ndarray:
    """What llama.cpp divides each rotary frequency by, for llama3 scaling: (d / 2,) in fp32."""
    frequencies = 1 / rope.theta ** (np.arange(0, head_dim, 2) / head_dim)
    share = rope.kept_share(frequencies)
    return (1 / ((1 - share) / rope.factor + share)).astype(np.float32)


def rope_of_factors(factors: np.ndarray, theta: float) -> Rope | None:
    """The llama3 scaling that gives these factors; None where it is another one."""
    rope = Rope(
        theta=theta,
        rope_type="llama3",
        factor=float(factors.max()),
        low_freq_factor=_LOW,
        high_freq_factor=_HIGH,
        original_context_length=_ORIGINAL,
    )
    expected = rope_factors(rope, 2 * len(factors))
    return rope if np.allclose(factors, expected, rtol=1e-4, atol=0) else None
