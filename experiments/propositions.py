"""Propositions 3 to 6 of TPI-LLM (arXiv 2410.00531): when the window hides the disk, its memory.

The tests hold them against the paper's own numbers.
"""

from __future__ import annotations

import math


def window_peak_parameters(
    *, h: int, v: int, a: int, b: int, s: int, p: float, window: int, is_master: bool
) -> float:
    """Proposition 5: parameters a device holds at most, with a heads, b KV heads, share p."""
    attention = 2 * (a + b) * h * h * p / a + h
    ffn = 3 * h * s * p + h
    if not is_master:
        return window // 2 * attention + (window + 1) // 2 * ffn
    if window == 1:
        return h * v + h
    return 2 * h * v + h + max(0, (window - 2) // 2) * attention + max(0, (window - 1) // 2) * ffn


def is_loosely_steady(
    *, t_attn: float, t_ffn: float, t_ar: float, tau_attn: float, tau_ffn: float, num_layers: int
) -> bool:
    """Proposition 3: the disk keeps up over every stretch of layers. All times in one unit."""
    if t_attn + t_ffn + 2 * t_ar < tau_attn + tau_ffn:
        return False
    return all(
        n * t_attn + (n - 1) * t_ffn + (2 * n - 1) * t_ar >= n * tau_ffn + (n - 1) * tau_attn
        or (n - 1) * t_attn + n * t_ffn + (2 * n - 1) * t_ar >= (n - 1) * tau_ffn + n * tau_attn
        for n in range(1, num_layers + 1)
    )


def is_tightly_steady(
    *, t_attn: float, t_ffn: float, t_ar: float, tau_attn: float, tau_ffn: float
) -> bool:
    """Proposition 4: each block's load hides behind the block and allreduce before it."""
    return t_attn + t_ar >= tau_ffn and t_ffn + t_ar >= tau_attn


def is_steady_with_retention(
    *,
    t_attn: float,
    t_ffn: float,
    t_ar: float,
    tau_attn: float,
    tau_ffn: float,
    num_layers: int,
    period: int,
) -> bool:
    """Proposition 6: as Proposition 3, with every `period`-th FFN block resident."""
    for n in range(1, num_layers + 1):
        loads = (n - math.ceil(n / period)) * tau_ffn
        if n * t_attn + n * t_ffn + 2 * n * t_ar < loads + n * tau_attn:
            return False
        if n * t_attn + (n - 1) * t_ffn + (2 * n - 1) * t_ar < loads + (n - 1) * tau_attn:
            return False
    return True
