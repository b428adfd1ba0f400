"""Formulas of TPI-LLM (arXiv 2410.00531) and the physical limits that results are held against."""

from __future__ import annotations

import math


def allreduce_steps(collective: str, num_devices: int) -> int:
    """One-way latencies on the critical path of one allreduce (paper, section 3.2 and appendix).

    With the paper's 4 hops of latency tau one way: star 8 tau, tree 16 tau, ring of 8 devices 56
    tau.
    """
    if num_devices == 1:
        return 0
    if collective == "tree" and num_devices > 2:
        return 4
    return {"star": 2, "tree": 2, "ring": 2 * (num_devices - 1), "direct": 1}[collective]


def tensor_parallel_steps(collective: str, num_devices: int, num_layers: int) -> int:
    """One-way latencies on the critical path of one token, as the master sees it.

    Two allreduces a layer and the embedding's broadcast, less what the master need not wait for:
    after the last allreduce the sum's way back to the workers (star 1, tree 2). Where peers
    exchange without a hub (ring, direct), a worker that starts one latency late meets messages
    that are there already, and the broadcast hides: it is not counted, so this is a lower bound.
    """
    steps = 2 * num_layers * allreduce_steps(collective, num_devices)
    if num_devices == 1 or collective in ("ring", "direct"):
        return steps
    return 1 + steps - (2 if collective == "tree" and num_devices > 2 else 1)


def pipeline_steps(num_devices: int) -> int:
    """One-way latencies of one token: through every device and back to the master."""
    return num_devices if num_devices > 1 else 0


def token_limit_s(
    *, memory_s: float, critical_memory_s: float, network_s: float, disk_s: float
) -> float:
    """Nothing can be faster on this host, whatever overlaps.

    `memory_s`: all weight bytes of a token over the host's memory bandwidth. `critical_memory_s`:
    those that are read one after another with link latencies (one device's under tensor
    parallelism, where the others work or wait meanwhile; everyone's in a pipeline). `disk_s`: all
    streamed bytes over the disk's bandwidth, which may run behind the rest.
    """
    return max(memory_s, critical_memory_s + network_s, disk_s)


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
