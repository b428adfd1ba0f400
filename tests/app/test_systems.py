"""What a new system is told when something of it is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from baselines.huggingface import HuggingFaceSystem
from tpi_bench.app import unknown
from tpi_bench.app.compose import build_settings
from tpi_bench.app.settings import settings_of
from tpi_bench.app.typed import make_dataclass
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import System
from tpi_bench.engine.tpi import TpiSystem

CONF = str(Path(__file__).resolve().parents[2] / "conf")


@dataclass(frozen=True, kw_only=True)
class WithoutTraffic(System):
    name: str = "unfinished"

    def plan(self, config, site):
        return None

    def run_device(self, rt, job, output):
        return None


@dataclass(frozen=True, kw_only=True)
class NoSystem:
    name: str = "unfinished"


@dataclass(frozen=True, kw_only=True)
class Choosy(TpiSystem):
    mode: str = setting("fast", "how it goes about it", ("fast", "careful"))
    depth: int = setting(2, "how deep", (1, 2, 3))


class NoDataclass(HuggingFaceSystem):
    def run_device(self, rt, job, output):
        return None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("WithoutTraffic", "does not define traffic"),
        ("NoDataclass", "is not a dataclass; give it @dataclass"),
        ("NoSystem", "is no system; derive it from tpi_bench.contract.system.System"),
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


def test_a_value_that_is_no_choice_is_refused() -> None:
    """A system says its choices once, beside the field, and needs no check of its own."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", ["model=debug", "workload.prompt_ids=[1]"])
    config.system = {"_target_": f"{__name__}.Choosy", "name": "choosy", "mode": "careful"}
    assert build_settings(config).system.mode == "careful"  # type: ignore[attr-defined]
    config.system = {**config.system, "depth": 4}
    with pytest.raises(ValueError, match=r"system\.depth=4 is unknown; choose one of 1, 2, 3$"):
        build_settings(config)
    (depth,) = (known for known in settings_of("system", Choosy) if known.name == "system.depth")
    assert depth.allowed == "1, 2, 3"
    config.system.depth = 3
    config.system.mode = "slow"
    with pytest.raises(
        ValueError, match=r"system\.mode=slow is unknown; choose one of fast, caref"
    ):
        build_settings(config)


def test_a_setting_that_the_yaml_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"_target_": f"{__name__}.Choosy", "name": "choosy"}
    monkeypatch.setattr(unknown, "choices_of", lambda group, folders: {"choosy": values})
    with initialize_config_dir(CONF, version_base="1.3"), pytest.raises(Exception) as caught:  # noqa: PT011
        compose("config", ["system.mode=slow"])
    assert unknown.explained(caught.value, ["system=choosy", "system.mode=slow"]) == (
        "system=choosy has the setting mode, but its YAML gives it no value; add mode there with "
        "its default, or type +system.mode=VALUE"
    )
    assert unknown.explained(caught.value, ["system=nope", "system.mode=slow"]) == (
        "there is no system.mode; there are none"
    )


@dataclass(frozen=True, kw_only=True)
class Hasty:
    """Its author has written a text where the annotation says a number."""

    patience: int = setting("long", "how long it waits")  # type: ignore[assignment]
    weights: tuple[float, ...] = setting((0.5, 0.5), "of its halves")


def test_a_default_of_the_wrong_type_is_told() -> None:
    assert make_dataclass(Hasty, {"patience": 2}, "system").weights == (0.5, 0.5)
    with pytest.raises(ValueError, match=r"Hasty\.patience has the default 'long' .* whole number"):
        make_dataclass(Hasty, {}, "system")
