"""The groups of the configuration and their choices, read from the files in `conf/`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from tpi_bench.app.config_folders import CONFIG_FOLDER

GROUPS = ("system", "model", "testbed", "device", "network", "workload")


@functools.cache
def choices_of(group: str) -> dict[str, dict[str, Any]]:
    """Every choice of a group with its values, those of what it builds on included.

    What builds on others comes behind all that does not.
    """
    folder = CONFIG_FOLDER / group
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    names.sort(key=lambda name: "defaults" in _own(folder, name))
    return {name: _values(folder, name) for name in names}


def _own(folder: Path, name: str) -> dict[str, Any]:
    return yaml.safe_load((folder / f"{name}.yaml").read_text()) or {}


def _values(folder: Path, name: str) -> dict[str, Any]:
    own = _own(folder, name)
    found: dict[str, Any] = {}
    for below in own.pop("defaults", []):
        if isinstance(below, str) and below != "_self_":
            found |= _values(folder, below)
    return found | own


@functools.cache
def defaults() -> dict[str, str]:
    """The choice of each group where none is made."""
    listed = yaml.safe_load((CONFIG_FOLDER / "config.yaml").read_text())["defaults"]
    return {k: v for each in listed if isinstance(each, dict) for k, v in each.items()}
