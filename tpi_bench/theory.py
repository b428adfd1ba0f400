"""Formulas of TPI-LLM (arXiv 2410.00531) and the physical limits that results are held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tpi_bench.plans import tree_groups


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


def allreduce_s(
    collective: str, num_devices: int, *, one_way_s: float, nbytes: int, bandwidth_bps: float
) -> float:
    """Time of one allreduce of `nbytes` a device, with the data term on the busiest port.

    The paper's form (section 3.2) is the latency term alone: it leaves out that the payloads of the
    N - 1 workers share the master's own link, one after another in each direction. T is one
    payload's transfer time over a link of `bandwidth_bps` bits a second (0 is unlimited), bits flow
    through switches at once. Star: 2 latencies and 2 (N - 1) T. Tree: 4 latencies and twice the
    leaves of the largest group and the groups themselves. Ring: 2 (N - 1) steps of a latency and
    T / N. Direct: a latency and (N - 1) T.
    """
    if num_devices == 1:
        return 0.0
    transfer_s = nbytes * 8 / bandwidth_bps if bandwidth_bps else 0.0
    latency_s = allreduce_steps(collective, num_devices) * one_way_s
    if collective == "ring":
        return latency_s + 2 * (num_devices - 1) / num_devices * transfer_s
    if collective == "direct":
        return latency_s + (num_devices - 1) * transfer_s
    if collective == "star" or num_devices == 2:
        return latency_s + 2 * (num_devices - 1) * transfer_s
    sizes = [len(group) for group in tree_groups(num_devices)]
    return latency_s + 2 * (max(sizes) - 1 + len(sizes)) * transfer_s


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


def galaxy_steps(num_devices: int, num_layers: int) -> int:
    """One-way latencies of one token of Galaxy (arXiv 2405.17245): one round of the ring a block.

    A new position is one tile, of the master. Its all-gather goes round in N - 1 steps, and so does
    the sum back to it; but each device adds its part as soon as the tile has passed, right behind
    it, so that both take N steps together.
    """
    return 2 * num_layers * num_devices if num_devices > 1 else 0


def pipeline_steps(num_devices: int) -> int:
    """One-way latencies of one token: through every device and back to the master."""
    return num_devices if num_devices > 1 else 0


@dataclass(frozen=True)
class TokenBytes:
    """One device's weight bytes of a token: of its layers, of the output head, and off the disk."""

    layers: int
    head: int
    streamed: int


@dataclass(frozen=True)
class TokenTimes:
    """What the bytes of a token take at least, in seconds.

    `memory_s`: all of them over memory bandwidth. `critical_memory_s`: those that are touched one
    after another with link latencies (one device's under tensor parallelism, where the others work
    or wait meanwhile; everyone's in a pipeline). `disk_s`: streamed ones over disk bandwidth.
    """

    memory_s: float
    critical_memory_s: float
    disk_s: float


def shared_rates(
    sizes: Sequence[TokenBytes],
    memory_bps: float,
    disk_bps: float,
    *,
    is_tensor: bool,
    cache_bytes: int,
) -> TokenTimes:
    """Devices that share one host's memory and disk. Weights within the CPU cache cost nothing."""
    layers, head = [size.layers for size in sizes], sum(size.head for size in sizes)
    streamed = sum(size.streamed for size in sizes)
    disk_s = streamed / disk_bps if streamed else 0.0
    if sum(layers) + head < cache_bytes:
        return TokenTimes(math.nan, 0.0, disk_s)
    in_turn = max(layers) if is_tensor else sum(layers)
    return TokenTimes((sum(layers) + head) / memory_bps, (in_turn + head) / memory_bps, disk_s)


def own_rates(
    sizes: Sequence[TokenBytes],
    memory_bps: Sequence[float],
    disk_bps: Sequence[float],
    *,
    is_tensor: bool,
) -> TokenTimes:
    """Devices with memory and disk of their own: the slowest, or in a pipeline all in turn."""
    layers_s = [size.layers / rate for size, rate in zip(sizes, memory_bps, strict=True)]
    head_s = max(size.head / rate for size, rate in zip(sizes, memory_bps, strict=True))
    disk_s = max(size.streamed / rate for size, rate in zip(sizes, disk_bps, strict=True))
    in_turn = max(layers_s) if is_tensor else sum(layers_s)
    return TokenTimes(in_turn + head_s, in_turn + head_s, disk_s)


def token_limit_s(times: TokenTimes, network_s: float) -> float:
    """Nothing can be faster, whatever overlaps: memory, memory in turn with links, or disk."""
    memory_s = 0.0 if math.isnan(times.memory_s) else times.memory_s
    return max(memory_s, times.critical_memory_s + network_s, times.disk_s)


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
