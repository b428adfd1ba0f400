"""From Hydra's composed config to checked dataclasses. Below this file nobody sees a DictConfig."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tpi_bench import cache, page_cache
from tpi_bench.links import NetworkConfig
from tpi_bench.plans import check_proportions
from tpi_bench.profiles import DeviceProfile
from tpi_bench.workload import Workload

TASKS = ("generate", "measure", "calibrate")
REPORTS = ("text", "json")
# Settings that say how to run and show a point, not what it is.
_NOT_PART_OF_A_POINT = (
    "task",
    "report",
    "resume",
    "results_dir",
    "cache_dir",
    "figure",
    "oracle",
    "prompt",
    "timeout_s",
)


_PLAIN: dict[str, Any] = {
    "name": str,
    "results_dir": str,
    "cache_dir": str | None,
    "figure": str | None,
    "repeat": int,
    "check": bool,
    "timeout_s": float | None,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One point, checked. `raw` is the plain config it was made from."""

    task: str
    name: str
    report: str
    results_dir: str
    cache_dir: str | None
    figure: str | None
    repeat: int
    check: bool
    system: Any
    oracle: Any
    model: Any
    testbed: Any
    devices: tuple[Any, ...]
    memory_mb: float | list[float] | None
    cache: str
    timeout_s: float | None
    network: NetworkConfig
    workload: Workload
    raw: dict[str, Any]

    @property
    def num_devices(self) -> int:
        """Devices of this point: single-process systems use one whatever the testbed offers."""
        offered = self.testbed.num_devices or len(self.devices)
        return min(offered, self.system.max_devices or offered)

    def shares(self, devices: Sequence[DeviceProfile]) -> list[float]:
        """The proportions that a plan divides by. Raises ValueError when they make no sense."""
        if self.num_devices == 1:
            return [1.0]
        if self.testbed.proportions == "strength":
            return [device.strength for device in devices]
        return check_proportions(self.num_devices, self.testbed.proportions)

    @property
    def memory_bytes(self) -> tuple[int, ...] | None:
        """The cap of each device. Raises ValueError when a list has another length."""
        if self.memory_mb is None:
            return None
        each = self.memory_mb
        if not isinstance(each, list):
            each = [each] * self.num_devices
        if len(each) != self.num_devices:
            raise ValueError(
                f"device.memory_mb={each} names {len(each)} devices, but there are "
                f"{self.num_devices}; give one number for all, or one for each"
            )
        return tuple(round(megabytes * 1e6) for megabytes in each)

    @property
    def config_hash(self) -> str:
        """Names the configuration apart from the repeat; equal for points that measure the same."""
        return cache.digest({k: v for k, v in self._relevant().items() if k != "repeat"})

    @property
    def point(self) -> str:
        """Names the point. A system without a network is one point at every link latency."""
        return cache.digest(self._relevant())

    def _relevant(self) -> dict[str, Any]:
        relevant = {k: v for k, v in self.raw.items() if k not in _NOT_PART_OF_A_POINT}
        if self.testbed.clock == "wall":
            del relevant["device"]
        else:
            del relevant["cache"]
        if self.system.max_devices == 1:
            testbed = {
                k: v
                for k, v in relevant["testbed"].items()
                if k not in ("num_devices", "proportions")
            }
            relevant = {k: v for k, v in relevant.items() if k != "network"} | {"testbed": testbed}
        return relevant


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
    values["device"] = _devices_in_order(values["device"], overrides)
    groups = {
        name: _make(values[name], name)
        for name in ("system", "oracle", "model", "testbed", "network")
    }
    workload = make_dataclass(Workload, values["workload"], "workload")
    for name, hint in _PLAIN.items():
        if not _fits(values[name], hint):
            raise ValueError(
                f"{name}={values[name]} has the wrong type; it must be {_describe(hint)}"
            )
    timeout_s = values["timeout_s"]
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s={timeout_s} must be above 0 seconds, or null")
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", values["name"]):
        raise ValueError(
            f"name={values['name']} names a folder; use letters, digits, '_', '-', '.'"
        )
    plain = {
        name: values[name]
        for name in ("task", "name", "report", "results_dir", "cache_dir", "figure")
    }
    return Settings(
        **plain,
        **groups,
        devices=tuple(_make(device, "device") for device in values["device"]),
        **{name: values[name] for name in ("memory_mb", "cache", "timeout_s")},
        workload=workload,
        repeat=values["repeat"],
        check=values["check"],
        raw=values,
    )


def _take_memory(group: dict[str, Any]) -> Any:
    """`device.memory_mb`, which stands beside the profiles, taken out of their group."""
    given = group.pop("memory_mb", None)
    each = given if isinstance(given, list) else [given] * (given is not None)
    good = all(_fits(value, float) and 0 < value < math.inf for value in each)
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


def _make(values: dict[str, Any], group: str) -> Any:
    """An instance of the dataclass that `_target_` names."""
    target = values.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise ValueError(
            f"{group} has no _target_; its YAML names a dataclass, as conf/{group}/*.yaml do"
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


def make_dataclass(cls: Any, values: dict[str, Any], group: str) -> Any:
    """`cls(**values)` once names and types are known to be right."""
    fields = {field.name for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"{group}.{key} is unknown; {group} has {', '.join(sorted(fields))}")
        if not _fits(value, hints[key]):
            raise ValueError(
                f"{group}.{key}={value} has the wrong type; it must be {_describe(hints[key])}"
            )
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{group}.{missing[0]} is missing")
    return cls(**values)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if hint is type(None):
        return value is None
    if isinstance(origin, type):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if isinstance(typing.get_origin(hint), type):
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(hint, str(hint))


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value} is unknown; choose one of {', '.join(allowed)}")
