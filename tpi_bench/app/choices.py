"""The groups of the configuration and their choices, read from the files in `conf/`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tpi_bench.app.config_folders import CONFIG_FOLDER

GROUPS = ("system", "model", "testbed", "device", "network", "workload")


def choices_of(group: str, folders: Sequence[Path] = (CONFIG_FOLDER,)) -> dict[str, dict[str, Any]]:
    """Every choice of a group with its values, those of what it builds on included.

    Of files with the same name that of the first folder counts, as for Hydra. What builds on others
    comes behind all that does not.
    """
    if tuple(folders) == (CONFIG_FOLDER,):
        return _of_conf(group)
    return _choices_in(tuple(folders), group)


@functools.cache
def _of_conf(group: str) -> dict[str, dict[str, Any]]:
    return _choices_in((CONFIG_FOLDER,), group)


def _choices_in(folders: tuple[Path, ...], group: str) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            if path.stem not in files:
                files[path.stem] = read_yaml(path)
    names = sorted(files)
    names.sort(key=lambda name: "defaults" in files[name])
    return {name: _values(files, name) for name in names}


def read_yaml(path: Path) -> dict[str, Any]:
    """Empty where it is no mapping: Hydra says what is wrong with a file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _values(files: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    own = dict(files.get(name, {}))
    found: dict[str, Any] = {}
    for below in own.pop("defaults", None) or []:
        if isinstance(below, str) and below not in ("_self_", name):
            found |= _values(files, below)
    return found | own


@functools.cache
def defaults() -> dict[str, str]:
    """The choice of each group where none is made."""
    listed = yaml.safe_load((CONFIG_FOLDER / "config.yaml").read_text())["defaults"]
    return {k: v for each in listed if isinstance(each, dict) for k, v in each.items()}
