"""`task=advise` without a folder: what is typed, as the search is asked it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tpi_bench.app.advise_asked import base_of, fixed_of, household_of, with_advice_defaults
from tpi_bench.app.api import settings_of
from tpi_bench.app.arguments import for_hydra
from tpi_bench.app.like import settings_like
from tpi_bench.contract.model import ModelConfig
from tpi_bench.measure.bounds import Bounds
from tpi_bench.measure.household import Household
from tpi_bench.measure.planned import load_model
from tpi_bench.measure.search import Bounded
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.ways import Fixed, Way, ways

# Heads and columns that groups of 32 divide for three devices, and little to compute.
SMALL = (
    "model=debug",
    "model.num_layers=3",
    "model.hidden=128",
    "model.num_heads=8",
    "model.num_kv_heads=4",
    "model.intermediate=384",
    "workload.prompt_tokens=4",
    "workload.num_new_tokens=5",
)


@dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    household: Household
    config: ModelConfig
    fixed: Fixed
    base: Settings

    def bounded(self) -> list[Bounded]:
        bounds = Bounds(self.household, self.config, self.fixed.dtype)
        return [(way, bounds.of(way)) for way in ways(self.household, self.config, self.fixed)]

    def settings(self, way: Way) -> Settings:
        return settings_like(self.base, way.changes(self.household))


def asked(*typed: str, cache_dir: Path) -> Asked:
    given = for_hydra(["task=advise", *typed, f"cache_dir={cache_dir}"], lambda: "")
    settings = settings_of(with_advice_defaults(given))
    return Asked(
        household=household_of(settings, cache_dir),
        config=load_model(settings.model, cache_dir).config,
        fixed=fixed_of(settings),
        base=base_of(settings, cache_dir),
    )
