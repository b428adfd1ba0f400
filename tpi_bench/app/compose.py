"""From Hydra's composed config to checked dataclasses. Below this file nobody sees a DictConfig."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tpi_bench.app.typed import describe, fits, make_dataclass
from tpi_bench.contract.request import Workload
from tpi_bench.host import page_cache
from tpi_bench.measure.settings import Settings

TASKS = ("generate", "measure", "perplexity", "calibrate")
REPORTS = ("text", "json")
_PLAIN: dict[str, Any] = {
    "name": str,
    "results_dir": str,
    "cache_dir": str | None,
    "figure": str | None,
    "repeat": int,
    "check": bool,
    "timeout_s": float | None,
}


def build_settings(cfg: DictConfig, overrides: Sequence[str] = ()) -> Settings:
    """Check every value. Raises ValueError: what was given, what is allowed.

    `overrides` are the point's own, for what composing loses: the order of `device=[a,b,b]` and
    that b is there twice.
    """
    raw = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(raw, dict)
    _check_choice("task", raw["task"], TASKS)
    _check_choice("report", raw["report"], REPORTS)
    values: dict[str, Any] = {str(k): v for k, v in raw.items()}
    _check_choice("cache", raw["cache"], page_cache.MODES)
    values["memory_mb"] = _take_memory(values["device"])
    values["device"] = _devices_in_order(_packaged(values["device"]), overrides)
    groups = {
        name: _make(values[name], name)
        for name in ("system", "oracle", "model", "testbed", "network")
    }
    workload = make_dataclass(Workload, values["workload"], "workload")
    _check_plain(values)
    return Settings(
        **{name: values[name] for name in ("task", "report", "cache", "memory_mb", *_PLAIN)},
        **groups,
        profiles=tuple(_make(each, _device_group(each)) for each in values["device"]),
        workload=workload,
        raw=values,
    )


def _check_plain(values: dict[str, Any]) -> None:
    """Settings that are in no group."""
    for name, hint in _PLAIN.items():
        if not fits(values[name], hint):
            raise ValueError(
                f"{name}={values[name]} has the wrong type; it must be {describe(hint)}"
            )
    timeout_s = values["timeout_s"]
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s={timeout_s} must be above 0 seconds, or null")
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", values["name"]):
        raise ValueError(
            f"name={values['name']} names a folder; use letters, digits, '_', '-', '.'"
        )


def _take_memory(group: dict[str, Any]) -> Any:
    """`device.memory_mb`, which stands beside the profiles, taken out of their group."""
    given = group.pop("memory_mb", None)
    each = given if isinstance(given, list) else [given] * (given is not None)
    good = all(fits(value, float) and 0 < value < math.inf for value in each)
    if not good or given == []:
        raise ValueError(
            f"device.memory_mb={given} must be a number above 0 for all devices, a list with one "
            "for each, or null"
        )
    return given


def _devices_in_order(profiles: dict[str, Any], overrides: Sequence[str]) -> list[Any]:
    """The composed profiles, as often and in the order that the command line names them."""
    names = list(profiles)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        value = override.value()
        if override.get_key_element() == "device" and isinstance(value, list):
            names = [str(name) for name in value]
    return [profiles[name] for name in names]


def _packaged(profiles: dict[str, Any]) -> dict[str, Any]:
    """The profiles by name, once each is known to be in a package of its own."""
    for name, profile in profiles.items():
        called = profile.get("name", name) if isinstance(profile, dict) else profiles.get("name")
        if called != name:
            raise ValueError(
                f"the device profile {called} is not in its own package: the first line of its "
                f"file must be '# @package device.{called}' (see conf/device/README.md)"
            )
    return profiles


def _device_group(profile: dict[str, Any]) -> str:
    """As its settings are called on the command line."""
    return f"device.{profile['name']}" if "name" in profile else "device"


def _make(values: dict[str, Any], group: str) -> Any:
    """An instance of the dataclass that `_target_` names."""
    target = values.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise ValueError(
            f"{group} has no _target_; its YAML names a dataclass, as those beside it in "
            f"conf/{group.partition('.')[0]}/ do"
        )
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ValueError(f"{group}._target_={target} cannot be loaded: {error}") from error
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{group}._target_={target} is not a dataclass; give it @dataclass")
    if missing := getattr(cls, "__abstractmethods__", None):
        raise ValueError(f"{group}._target_={target} does not define {', '.join(sorted(missing))}")
    return make_dataclass(cls, {k: v for k, v in values.items() if k != "_target_"}, group)


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value} is unknown; choose one of {', '.join(allowed)}")
