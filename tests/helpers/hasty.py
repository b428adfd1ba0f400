"""A system of somebody's own whose plan fails."""

from __future__ import annotations

from dataclasses import dataclass

from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.plan import Plan, Site
from tpi_bench.engine.tpi import TpiSystem


@dataclass(frozen=True, kw_only=True)
class HastySystem(TpiSystem):
    """As `tpi` otherwise."""

    def plan(self, config: ModelConfig, site: Site) -> Plan:
        raise ZeroDivisionError("a plan of its own")
