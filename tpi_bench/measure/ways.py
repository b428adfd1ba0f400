"""Every way in which a household could run a model: who, which system with which settings, in which
precision, divided how.

What the command line says already is not varied. `bounds.py` says what a way takes at least,
`search.py` which of them are run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpi_bench.contract.model import BYTES_PER_WEIGHT, ModelConfig, group_of
from tpi_bench.engine.collectives import COLLECTIVE_NAMES
from tpi_bench.engine.plans import split_in_units, split_proportional
from tpi_bench.engine.wire import WIRES
from tpi_bench.measure.household import Household, Team
from tpi_bench.measure.shares import Hand, in_turns, together

PRECISIONS = ("q4", "q8", "bfloat16", "float32")
_PLANNED_SHARE = 0.94  # of a device's memory: the rest is for KV cache and hidden states
Shares = tuple[float, ...] | str | None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A choice of `system=`, and the settings of it that are tried.

    `scheme` is how it divides a model, for `bounds.py`: `tensor` or `layers`, by shares that are
    given; `groups`, both; `chain`, `ring` and `galaxy`, whose planners choose them; `unknown` for a
    system of others. `has` are settings of its YAML. `only_short` is tried only where memory is
    short: elsewhere it does what others do.
    """

    system: str
    scheme: str
    tried: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    has: Mapping[str, Any] = field(default_factory=dict)
    only_short: bool = False
    least_devices: int = 1
    is_typed: bool = False


_TENSOR, _PIPELINE = "tpi_bench.engine.tpi.TpiSystem", "baselines.pipeline.PipelineSystem"
_GALAXY = "baselines.galaxy.GalaxySystem"
_PRIMA, _HYBRID = "baselines.prima.PrimaSystem", "baselines.hybrid.HybridSystem"
FAMILIES = (
    Family(
        system="tpi",
        scheme="tensor",
        tried={"collective": COLLECTIVE_NAMES, "wire": WIRES, "window": ("auto",)},
    ),
    Family(
        system="pipeline",
        scheme="layers",
        tried={"wire": WIRES, "window": ("auto",)},
        least_devices=2,
    ),
    Family(
        system="edgeshard",
        scheme="chain",
        tried={"wire": WIRES},
        has={"planner": "edgeshard"},
        least_devices=2,
    ),
    Family(system="galaxy", scheme="galaxy", tried={"wire": WIRES}, least_devices=2),
    Family(system="prima", scheme="ring", tried={"wire": WIRES}, only_short=True, least_devices=2),
    Family(
        system="hybrid",
        scheme="groups",
        tried={
            "group_size": (),
            "collective": ("star", "direct"),
            "wire": WIRES,
            "window": ("auto",),
        },
        least_devices=4,
    ),
    Family(system="tpi_window2", scheme="tensor", has={"window": 2}, only_short=True),
    Family(system="mmap", scheme="tensor", has={"loading": "mmap"}, only_short=True),
    Family(
        system="blocking",
        scheme="tensor",
        has={"loading": "blocking"},
        only_short=True,
    ),
)
_OF_LINKS = ("collective", "wire")  # which change nothing on one device


@dataclass(frozen=True, kw_only=True)
class Way:
    """A point of the search. `settings` are those of the system that are tried, in order."""

    team: Team
    weights: str
    system: str
    scheme: str
    settings: tuple[tuple[str, Any], ...]
    shares: Shares
    has: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    is_typed: bool = False
    only_short: bool = False  # not tried where memory is not short

    def setting(self, name: str, default: Any = None) -> Any:
        """Of the system, as tried, typed or in its YAML."""
        return dict(self.settings).get(name, self.has.get(name, default))

    @property
    def kind(self) -> str:
        """What tables tell apart: the system, and its collective if it has one."""
        collective = dict(self.settings).get("collective")
        return f"{self.system} {collective}" if collective and len(self.team) > 1 else self.system

    @property
    def choice(self) -> tuple[object, ...]:
        """What a table has a line for: its best master, settings and shares stand there."""
        return self.kind, tuple(sorted(self.team)), self.weights

    def changes(self, household: Household) -> dict[str, Any]:
        """As settings of the command line."""
        found: dict[str, Any] = {
            "model.weights": self.weights,
            "device": [household.choices[device] for device in self.team],
        }
        if len(self.team) > 1:
            tables = household.network_changes(self.team)
            found |= {f"network.{name}": rows for name, rows in tables.items()}
        if self.shares is not None:
            found["testbed.proportions"] = self.shares
        if not self.is_typed:
            found["system"] = self.system
        return found | {f"system.{name}": value for name, value in self.settings}


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What was typed and is not varied. `has` are all settings of a typed `system`."""

    system: str | None = None
    has: Mapping[str, Any] = field(default_factory=dict)
    typed: frozenset[str] = frozenset()
    precisions: tuple[str, ...] = PRECISIONS
    dtype: str = "auto"
    shares: Shares = None


def ways(household: Household, config: ModelConfig, fixed: Fixed) -> Iterator[Way]:
    """All of them, each once."""
    layers = config.num_layers * config.layer_parameters
    for weights, team in itertools.product(fixed.precisions, household.teams()):
        if isinstance(fixed.shares, tuple) and len(fixed.shares) != len(team):
            continue
        room = sum(household.profiles[device].memory_bytes for device in team)
        is_short = layers * BYTES_PER_WEIGHT[weights] > _PLANNED_SHARE * room
        is_whole = len(team) == household.num_devices
        for family in _families(fixed, len(team), is_short=is_short, is_whole=is_whole):
            options = _shares(family, fixed, household, config, team, weights)
            for settings in _settings(family, fixed, team, weights):
                for shares in options:
                    yield Way(
                        team=team,
                        weights=weights,
                        system=family.system,
                        scheme=family.scheme,
                        settings=settings,
                        shares=shares,
                        has=family.has,
                        is_typed=family.is_typed,
                        only_short=family.only_short and not family.is_typed,
                    )


def _families(fixed: Fixed, num_devices: int, *, is_short: bool, is_whole: bool) -> list[Family]:
    """Those that are worth trying; a typed one always."""
    if fixed.system is None:
        return [
            family
            for family in FAMILIES
            if num_devices >= family.least_devices
            and (is_short or not family.only_short)
            and (is_whole or family.scheme not in ("chain", "ring"))  # which choose devices
            and (family.scheme != "groups" or group_sizes(num_devices))
        ]
    for family in FAMILIES:
        if family.system == fixed.system:
            return [replace(family, has=fixed.has, is_typed=True)]
    is_planned = fixed.has.get("planner", "proportional") != "proportional"
    schemes = {
        _TENSOR: "tensor",
        _PIPELINE: "chain" if is_planned else "layers",
        _GALAXY: "galaxy",
        _PRIMA: "ring",
        _HYBRID: "groups",
    }
    return [
        Family(
            system=fixed.system,
            scheme=schemes.get(str(fixed.has.get("_target_")), "unknown"),
            tried={"wire": WIRES} if "wire" in fixed.has else {},
            has=fixed.has,
            is_typed=True,
        )
    ]


def group_sizes(num_devices: int) -> list[int]:
    """Of which there are several alike, with more than one device in each."""
    return [size for size in range(2, num_devices // 2 + 1) if num_devices % size == 0]


def _settings(
    family: Family, fixed: Fixed, team: Team, weights: str
) -> Iterator[tuple[tuple[str, Any], ...]]:
    """The system's settings that are tried, without those that were typed or change nothing."""
    is_narrow = weights in ("float16", "bfloat16") and fixed.dtype == "auto"
    tried: dict[str, Sequence[Any]] = {}
    for name, values in family.tried.items():
        if f"system.{name}" in fixed.typed:
            continue
        if name in _OF_LINKS and len(team) == 1:
            continue
        tried[name] = group_sizes(len(team)) if name == "group_size" else values
        if name == "collective" and len(team) == 2:
            tried[name] = [value for value in values if value != "tree"]  # then it is the star
        if name == "wire" and is_narrow:
            tried[name] = [value for value in values if value != "float16"]
    for chosen in itertools.product(*tried.values()):
        yield tuple(zip(tried, chosen, strict=True))


def _shares(
    family: Family,
    fixed: Fixed,
    household: Household,
    config: ModelConfig,
    team: Team,
    weights: str,
) -> list[Shares]:
    """Ways to divide the model that are not the same in the end; equal parts first."""
    if "testbed.proportions" in fixed.typed:
        return [fixed.shares]
    if len(team) == 1 or family.scheme not in ("tensor", "layers", "groups"):
        return [None]
    if family.scheme == "groups":
        return [None, "strength"]
    hands = hands_of(household, config, team, weights)
    layers = config.num_layers * config.layer_parameters * BYTES_PER_WEIGHT[weights]
    fitted = (together if family.scheme == "tensor" else in_turns)(hands, layers)
    found: dict[object, Shares] = {}
    options: list[Shares] = [None, "strength", fitted.shares]
    for option in options:
        numbers = proportions_of(household, team, option)
        try:
            found.setdefault(_split(family.scheme, config, numbers, weights), option)
        except ValueError:  # more devices than there are parts
            continue
    return list(found.values())


def hands_of(household: Household, config: ModelConfig, team: Team, weights: str) -> list[Hand]:
    """The devices as the planner sees them; the master also has both ends of the model."""
    ends = config.end_parameters * BYTES_PER_WEIGHT[weights]
    return [
        Hand(
            room=max(0.0, _PLANNED_SHARE * profile.memory_bytes - (0 if rank else ends)),
            memory_bps=profile.read_bps(weights),
            disk_bps=profile.disk_bps,
        )
        for rank, profile in enumerate(household.profiles[device] for device in team)
    ]


def proportions_of(household: Household, team: Team, shares: Shares) -> list[float]:
    """In numbers, one a device, that are short when typed: strength is in GB/s."""
    if shares is None:
        return [1.0] * len(team)
    if isinstance(shares, str):
        return [household.profiles[device].strength / 1e9 for device in team]
    return list(shares)


def _split(
    scheme: str, config: ModelConfig, proportions: Sequence[float], weights: str
) -> tuple[object, ...]:
    """What the plan would be."""
    if scheme == "layers":
        return tuple(split_proportional(config.num_layers, proportions))
    group = group_of(weights)
    heads = split_proportional(config.num_heads, proportions)
    return (*heads, *split_in_units(config.intermediate, group, proportions))
