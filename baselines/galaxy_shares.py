"""Galaxy's planner (arXiv 2405.17245, section 3): what share of every layer each device has.

In proportion to what devices compute, as far as their memory goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Site


def plan_shares(config: ModelConfig, site: Site) -> list[float]:
    """Of heads and columns, by what devices can do and hold. They sum up to 1."""
    weights = config.layer_parameters * site.bytes_per_weight
    layer = weights + config.cache_values(site.num_positions) * site.bytes_per_value
    return balanced_shares(
        capacities(site),
        layer * config.num_layers,
        config.end_parameters * site.bytes_per_weight,
        site.memory_bytes,
    )


def capacities(site: Site) -> list[float]:
    """What each device computes, relative to others: as given, or as its profile says."""
    if site.profiles and len(set(site.proportions)) == 1:
        return [profile.strength for profile in site.profiles]
    return list(site.proportions)


def balanced_shares(
    capacity: Sequence[float],
    layer_bytes: float,
    master_bytes: float,
    memory_bytes: Sequence[int] | None,
) -> list[float]:
    """Shares of all layers in proportion to capacity; what does not fit goes to the others.

    `layer_bytes` are those of all layers, `master_bytes` what rank 0 holds besides. Where memory is
    short everywhere the rest is spread as if it were not: the devices will say so.
    """
    rooms = [float("inf")] * len(capacity)
    if memory_bytes is not None:
        ends = [master_bytes, *[0.0] * (len(capacity) - 1)]
        rooms = [max(0.0, m - e) / layer_bytes for m, e in zip(memory_bytes, ends, strict=True)]
    shares = [0.0] * len(capacity)
    free = list(range(len(capacity)))
    left = 1.0
    while left > 1e-12 and free:
        total = sum(capacity[i] for i in free)
        full = [i for i in free if shares[i] + left * capacity[i] / total > rooms[i]]
        if not full:
            for i in free:
                shares[i] += left * capacity[i] / total
            return shares
        for i in full:
            left -= rooms[i] - shares[i]
            shares[i] = rooms[i]
        free = [i for i in free if i not in full]
    return [share + left * c / sum(capacity) for share, c in zip(shares, capacity, strict=True)]
