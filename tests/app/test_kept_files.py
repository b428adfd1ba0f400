"""YAML files parsed once: what Hydra gets of them is what it would read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra._internal.core_plugins import file_config_source as of_hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigLoadError

from tpi_bench.app.config_folders import CONFIG_FOLDER
from tpi_bench.app.kept_files import FileConfigSource, files_are_kept


@pytest.fixture
def source(tmp_path: Path) -> FileConfigSource:
    (tmp_path / "a.yaml").write_text("# @package _global_\nx: 1e3\ny: [1, {z: '2020-01-01'}]\n")
    return FileConfigSource("main", str(tmp_path))


@pytest.mark.parametrize("name", ["config", "experiment/fig_scaling.yaml", "device/raspberry_pi_5"])
def test_it_gives_what_the_file_gives(name: str) -> None:
    expected = of_hydra.FileConfigSource("main", str(CONFIG_FOLDER)).load_config(name)
    for _ in range(2):
        found = vars(FileConfigSource("main", str(CONFIG_FOLDER)).load_config(name))
        assert Path(found.pop("origin")[0]).samefile((CONFIG_FOLDER / name).with_suffix(".yaml"))
        assert found == vars(expected)


def test_each_has_a_copy_of_its_own(source: FileConfigSource) -> None:
    """Hydra takes the defaults list out of what it gets."""
    first = source.load_config("a")
    first.config.y[1].z = "changed"
    del first.config["x"]
    again = source.load_config("a")
    assert (again.config.x, again.config.y[1].z) == (1e3, "2020-01-01")
    assert again.header["package"] == "_global_"


def test_a_file_is_parsed_again_once_it_has_changed(
    source: FileConfigSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    load = of_hydra.FileConfigSource.load_config
    monkeypatch.setattr(
        of_hydra.FileConfigSource,
        "load_config",
        lambda self, path: parsed.append(path) or load(self, path),
    )
    for _ in range(3):
        assert source.load_config("a").config.x == 1e3
    assert parsed == ["a"]
    new = tmp_path / "new"
    new.write_text("x: 2\n")
    os.replace(new, tmp_path / "a.yaml")
    assert source.load_config("a").config == {"x": 2}
    assert parsed == ["a", "a"]


def test_one_that_is_not_there(source: FileConfigSource) -> None:
    with pytest.raises(ConfigLoadError, match=r"Config not found : .*/b\.yaml"):
        source.load_config("b")


def test_a_callers_own_hydra_reads_as_it_did() -> None:
    before = SourcesRegistry.instance().resolve("file")
    with files_are_kept():
        assert SourcesRegistry.instance().resolve("file") is FileConfigSource
    assert SourcesRegistry.instance().resolve("file") is before
