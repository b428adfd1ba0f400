"""What a new system is told when something of it is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from baselines.huggingface import HuggingFaceSystem
from tpi_bench.app.compose import build_settings
from tpi_bench.contract.system import System

CONF = str(Path(__file__).resolve().parents[2] / "conf")


@dataclass(frozen=True, kw_only=True)
class WithoutTraffic(System):
    name: str = "unfinished"

    def plan(self, config, site):
        return None

    def run_device(self, rt, job, output):
        return None


class NoDataclass(HuggingFaceSystem):
    def run_device(self, rt, job, output):
        return None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("WithoutTraffic", "does not define traffic"),
        ("NoDataclass", "is not a dataclass; give it @dataclass"),
        (
            "Forgotten",
            f"cannot be loaded: module '{__name__}' has no attribute 'Forgotten'",
        ),
    ],
)
def test_what_is_missing_is_named(name: str, line: str) -> None:
    arguments = ["model=debug", "workload.prompt_ids=[1]"]
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", arguments)
    config.system = {"_target_": f"tests.app.test_systems.{name}", "name": "unfinished"}
    with pytest.raises(ValueError, match=re.escape(f"{name} {line}")):
        build_settings(config)
