"""Where configurations come from: `conf/`, a folder of the user's own, systems of other packages.

Another package offers a system by an entry point of the group `tpi_bench.systems` that names its
dataclass; `system=NAME` is then a choice like those of `conf/system/`, with the defaults of its
fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

SYSTEMS = "tpi_bench.systems"
_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = _PACKAGE / "conf"
CONFIG_FOLDER = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent / "conf"


def register_systems() -> None:
    """Make systems of other packages choices of `system=`; one that cannot be loaded is told."""
    for point in entry_points(group=SYSTEMS):
        try:
            node = _settings_with_defaults(point)
        except Exception as error:  # of a package that is not ours, and may not be wanted
            reason = f"{type(error).__name__}: {error}"
            print(
                f"system={point.name} of {_package(point)} is left out: {reason}", file=sys.stderr
            )
        else:
            ConfigStore.instance().store(
                group="system", name=point.name, node=node, provider=_package(point)
            )


def systems_offered() -> dict[str, dict[str, Any]]:
    """The settings of those systems of other packages that are choices now, by their names."""
    offered = {}
    for point in entry_points(group=SYSTEMS):
        with contextlib.suppress(Exception):  # as `register_systems` has said
            offered[point.name] = _settings_with_defaults(point)
    return offered


def settings_of_system(name: str, folders: Sequence[Path] = (CONFIG_FOLDER,)) -> frozenset[str]:
    """The keys of a system's YAML with what it builds on; empty for one that is not known."""
    for folder in folders:
        path = folder / "system" / f"{name}.yaml"
        if path.is_file():
            own = yaml.safe_load(path.read_text()) or {}
            below = [str(base) for base in own.get("defaults", []) if base != "_self_"]
            return frozenset(own).union(*(settings_of_system(base, folders) for base in below))
    for point in entry_points(group=SYSTEMS, name=name):
        return frozenset(_settings_with_defaults(point))
    return frozenset()


def folders_of(config: DictConfig) -> tuple[Path, ...]:
    """The folders that a configuration was composed from."""
    sources = OmegaConf.select(config, "hydra.runtime.config_sources", default=())
    found = tuple(Path(source.path) for source in sources if source.schema == "file")
    return found or (CONFIG_FOLDER,)


def _settings_with_defaults(point: EntryPoint) -> dict[str, Any]:
    """As a YAML of `conf/system/` would hold them; what has no default must be given."""
    if (CONFIG_FOLDER / "system" / f"{point.name}.yaml").is_file():
        raise ValueError("tpi_bench has a system of that name; the package must choose another")
    cls = point.load()
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise ValueError(f"{point.value} is not a dataclass; give it @dataclass")
    node: dict[str, Any] = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            node[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            node[field.name] = field.default_factory()
        else:
            node[field.name] = "???"
    return node | {"name": point.name}


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
