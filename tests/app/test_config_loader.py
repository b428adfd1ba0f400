"""What is composed once for two questions is what Hydra composes for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from tests.app.test_devices import keep
from tpi_bench.app import config_loader
from tpi_bench.app.arguments import for_hydra
from tpi_bench.app.hydra_app import CONFIG_NAME, hydra_of_ours

SWEPT = "system=tpi,pipeline"
FILES = {
    "system/mine.yaml": "# @package _global_\ndefaults:\n  - /mine: ???\n",
    "mine/one.yaml": "# @package _global_\nsystem: {_target_: tpi_bench.engine.tpi.TpiSystem}\n",
    "experiment/quick.yaml": "# @package _global_\nhydra: {mode: MULTIRUN}\n",
}


@pytest.fixture
def hydra() -> Iterator[Hydra]:
    with hydra_of_ours() as ours:
        yield ours


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[RunMode]:
    """For which mode, each time that Hydra composes."""
    modes: list[RunMode] = []
    compose = ConfigLoaderImpl._load_configuration_impl

    def counted(self: Any, *, run_mode: RunMode, **kwargs: Any) -> Any:
        modes.append(run_mode)
        return compose(self, run_mode=run_mode, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    return modes


@pytest.fixture
def own(tmp_path: Path) -> str:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return f"hydra.searchpath=[file://{tmp_path}]"


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        (["model=debug", "system.window=2"], RunMode.RUN),
        (["+experiment=fig_latency", "model=debug", SWEPT], RunMode.MULTIRUN),
    ],
)
def test_a_look_and_a_run_are_one_composition(
    hydra: Hydra, composed: list[RunMode], arguments: list[str], mode: RunMode
) -> None:
    assert (hydra.get_mode(CONFIG_NAME, arguments) or RunMode.RUN) == mode
    config = hydra.compose_config(CONFIG_NAME, arguments, mode)
    assert len(composed) == 1
    expected = hydra.compose_config(CONFIG_NAME, arguments, mode)
    assert len(composed) == 2
    assert config is not expected
    assert OmegaConf.to_container(config) == OmegaConf.to_container(expected)
    assert OmegaConf.is_struct(config)


def test_others_are_composed(hydra: Hydra, composed: list[RunMode]) -> None:
    hydra.get_mode(CONFIG_NAME, ["model=debug"])
    config = hydra.compose_config(CONFIG_NAME, ["system.window=2"], RunMode.RUN)
    assert config.system.window == 2
    assert composed == [RunMode.MULTIRUN, RunMode.RUN]


def test_a_list_without_a_sweep_is_refused(hydra: Hydra) -> None:
    hydra.get_mode(CONFIG_NAME, [SWEPT])
    with pytest.raises(ConfigCompositionException, match="Ambiguous value for argument"):
        hydra.compose_config(CONFIG_NAME, [SWEPT], RunMode.RUN)


def test_a_choice_that_is_not_made_is_missed_in_a_run_alone(hydra: Hydra, own: str) -> None:
    """A look goes on without it, as a sweep does, whose points may make it."""
    given = [own, "system=mine"]
    for _ in range(2):
        assert hydra.get_mode(CONFIG_NAME, given) is None
        with pytest.raises(ConfigCompositionException, match="You must specify 'mine'"):
            hydra.compose_config(CONFIG_NAME, given, RunMode.RUN)
    assert hydra.get_mode(CONFIG_NAME, [*given, "mine=one"]) is None
    config = hydra.compose_config(CONFIG_NAME, [*given, "mine=one"], RunMode.RUN)
    assert config.system._target_.endswith("TpiSystem")


def test_folders_of_one_command_are_not_those_of_the_next(hydra: Hydra, own: str) -> None:
    folders = list(hydra.config_loader.get_sources())
    assert hydra.get_mode(CONFIG_NAME, [own, "+experiment=quick"]) == RunMode.MULTIRUN
    assert hydra.config_loader.get_sources() == folders
    with pytest.raises(ConfigCompositionException, match="Could not find 'experiment/quick'"):
        hydra.compose_config(CONFIG_NAME, ["+experiment=quick"], RunMode.RUN)


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files, each time that Hydra puts some together."""
    monkeypatch.setattr(config_loader, "_together", {})
    numbers: list[int] = []
    merge = ConfigLoaderImpl._compose_config_from_defaults_list

    def counted(self: Any, defaults: Any, repo: Any) -> Any:
        numbers.append(len(defaults))
        return merge(self, defaults, repo)

    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", counted)
    return numbers


def plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def test_the_same_files_are_put_together_once(merged: list[int]) -> None:
    given = [["system=pipeline", "timeout_s=7"], ["prompt=other", "system=pipeline"]]
    for arguments in given:  # two commands of one process
        with hydra_of_ours() as hydra:
            kept = hydra.compose_config(CONFIG_NAME, arguments, RunMode.RUN)
            own = super(config_loader.ConfigLoader, hydra.config_loader).load_configuration
            config_loader._together.clear()
            assert plain(kept) == plain(own(CONFIG_NAME, arguments, RunMode.RUN))
            assert list(kept) == list(own(CONFIG_NAME, arguments, RunMode.RUN))
        kept.system.name = "changed"  # and it is nobody else's
    assert len(merged) == 3
    with hydra_of_ours() as hydra:
        assert hydra.compose_config(CONFIG_NAME, given[0], RunMode.RUN).system.name == "pipeline"
        assert len(merged) == 3
        assert hydra.compose_config(CONFIG_NAME, ["system=galaxy"], RunMode.RUN).timeout_s != 7
    assert len(merged) == 4


def test_files_that_have_changed_or_moved_are_put_together_again(
    merged: list[int], own: str, tmp_path: Path
) -> None:
    quick = tmp_path / "experiment" / "quick.yaml"
    modes = []
    for text in ("RUN", "RUN", "MULTIRUN"):
        quick.write_text(f"# @package _global_\nhydra: {{mode: {text}}}\n")
        os.utime(quick, (0, len(modes) // 2))  # as if the second time it had been left alone
        with hydra_of_ours() as hydra:
            modes.append(hydra.get_mode(CONFIG_NAME, [own, "+experiment=quick"]))
    assert modes == [RunMode.RUN, RunMode.RUN, RunMode.MULTIRUN]


def test_a_device_of_a_file_is_as_the_file_says_now(merged: list[int], tmp_path: Path) -> None:
    """Under the same name, where no source of Hydra's tells whether it has changed."""
    for gigabytes in (4, 8):
        keep(tmp_path, "pi.json", machine={"name": "pi", "memory_gb": gigabytes})
        arguments = for_hydra([f"device={tmp_path}/pi.json"], lambda: "")
        with hydra_of_ours(arguments) as hydra:
            config = hydra.compose_config(CONFIG_NAME, arguments, RunMode.RUN)
        assert config.device.pi.memory_gb == gigabytes
