"""Devices and links as a planner of layers is told of them, for tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tpi_bench.contract.device import DeviceProfile, ideal_device
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.plan import Site
from tpi_bench.virtual.network import transfers_s

SHAPE = ModelConfig(
    num_layers=8,
    hidden=64,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    intermediate=128,
    vocab=100,
    context_length=64,
)


def device(name: str, memory_gb_per_s: float, memory_mb: float) -> DeviceProfile:
    return replace(ideal_device(name), memory_gb_per_s=memory_gb_per_s, memory_gb=memory_mb / 1e3)


def site_of(devices: Sequence[DeviceProfile], **network: Any) -> Site:
    return Site(
        proportions=[1.0] * len(devices),
        profiles=tuple(devices),
        memory_bytes=tuple(d.memory_bytes for d in devices),
        transfers_s=functools.partial(transfers_s, NetworkConfig(**network), len(devices)),
    )
