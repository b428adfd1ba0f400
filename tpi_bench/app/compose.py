"""From Hydra's composed config to checked dataclasses. Below this file nobody sees a DictConfig."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tpi_bench.app.arguments import plain_text, with_plain_text
from tpi_bench.app.choices import GROUPS
from tpi_bench.app.devices import name_of, names_of
from tpi_bench.app.drafts import draft_source
from tpi_bench.app.misplaced import misplaced
from tpi_bench.app.settings import PLAIN
from tpi_bench.app.typed import describe, did_you_mean, fits, load_class, make_dataclass, shown
from tpi_bench.contract.request import Workload
from tpi_bench.contract.system import System
from tpi_bench.measure.settings import Settings

_IN_NO_GROUP = {known.name: known for known in PLAIN if "." not in known.name}
_NOT_OF_A_POINT = ("prompt", "prompt_file", "resume")  # these are for others to read
_NOT_BELOW = ("verbosity", "progress", "output_dir")  # what no point asks for


def build_settings(cfg: DictConfig, overrides: Sequence[str] = ()) -> Settings:
    """Check every value. Raises ValueError: what was given, what is allowed.

    `overrides` are the point's own, for what composing loses: the order of `device=[a,b,b]` and
    that b is there twice.
    """
    raw = {str(key): _resolved(cfg, str(key)) for key in cfg if key != "hydra"}
    values: dict[str, Any] = plain_text(raw)
    if said := misplaced(values):
        raise ValueError(said)
    _check_plain(values)
    values["memory_mb"] = _take_memory(values["device"])
    values["device"] = _devices_in_order(_packaged(values["device"], overrides), overrides)
    return settings_from(values, overrides)


def _resolved(cfg: DictConfig, key: str) -> Any:
    """A part of the configuration by itself: a copy without Hydra's own would take longer."""
    if OmegaConf.is_missing(cfg, key):
        return "???"
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def settings_from(values: dict[str, Any], overrides: Sequence[str]) -> Settings:
    """From plain values as `Settings.raw` has them. Raises ValueError."""
    groups = {
        name: _make(values[name], name)
        for name in ("system", "oracle", "model", "testbed", "network")
    }
    workload = make_dataclass(Workload, values["workload"], "workload")
    above = {*_NOT_OF_A_POINT, *_NOT_BELOW}
    return Settings(
        **{name: values[name] for name in _IN_NO_GROUP if name not in above},
        **groups,
        memory_mb=values["memory_mb"],
        profiles=tuple(_make(each, _device_group(each)) for each in values["device"]),
        workload=workload,
        draft=draft_source(values),
        raw=values,
        overrides=tuple(map(with_plain_text, overrides)),
    )


def _check_plain(values: dict[str, Any]) -> None:
    """Settings that are in no group."""
    groups = {*GROUPS, "oracle", "hydra"}
    for name in values:
        if name not in groups and name not in _IN_NO_GROUP:
            raise ValueError(f"there is no {name}; {did_you_mean(name, [*_IN_NO_GROUP, *GROUPS])}")
    for name, known in _IN_NO_GROUP.items():
        if name in _NOT_OF_A_POINT:
            continue
        value = values[name]
        if known.choices and value not in known.choices:
            raise ValueError(f"{name}={value} is unknown; choose one of {', '.join(known.choices)}")
        if not fits(value, known.hint):
            raise ValueError(
                f"{name}={shown(value)} has the wrong type; it must be {describe(known.hint)}"
            )
    if not 0 <= values["wait"] < math.inf:
        raise ValueError(f"wait={values['wait']} must be true, false or seconds, 0 or more")
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
    names = [name_of(choice) for choice in chosen_devices(overrides)] or list(profiles)
    for name in names:
        if name not in profiles:
            raise ValueError(
                f"device={name}: its file says that it is one of {', '.join(profiles)}; the first "
                f"line must be '# @package device.{name}', and the name {name}"
            )
    return [profiles[name] for name in names]


def chosen_devices(overrides: Sequence[str]) -> list[str]:
    """What `device=[a,b,b]` lists, in its order; nothing where there is no list."""
    choices: list[str] = []
    of_devices = [text for text in overrides if text.startswith("device=")]
    for override in OverridesParser.create().parse_overrides(of_devices):
        value = override.value()
        if isinstance(value, list):
            choices = [str(choice) for choice in value]
    return choices


def _packaged(profiles: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The profiles by name, once each is known to be in a package of its own."""
    typed = [text.removeprefix("device=") for text in overrides if text.startswith("device=")]
    chosen = names_of(",".join(typed))
    for name, profile in profiles.items():
        called = profile.get("name", name) if isinstance(profile, dict) else profiles.get("name")
        if called != name and name in chosen and called not in chosen:
            raise ValueError(
                f"device.{name}.name={called} is the name of another device; it must be {name}, as "
                "its file is called"
            )
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
    cls = load_class(values.get("_target_"), group)
    if group in ("system", "oracle") and not issubclass(cls, System):
        raise ValueError(
            f"{group}._target_={values['_target_']} is no system; derive it from "
            "tpi_bench.contract.system.System (see baselines/README.md)"
        )
    return make_dataclass(cls, {k: v for k, v in values.items() if k != "_target_"}, group)
