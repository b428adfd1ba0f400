"""Settings as the command line makes them, without running it."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from tpi_bench.app.compose import build_settings
from tpi_bench.app.sweeper import CONFIG_FOLDER
from tpi_bench.measure.settings import Settings


def settings_of(*overrides: str) -> Settings:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("config", overrides=[*overrides, "results_dir=x"])
    return build_settings(cfg, overrides)
