"""What is typed for `task=advise`, as `measure/advise.py` is asked it: a household, what is fixed,
and what all points have in common.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tpi_bench.app.compose import chosen_devices
from tpi_bench.app.devices import surveyed_folder
from tpi_bench.app.like import settings_like
from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.model import resolve_types
from tpi_bench.measure.settings import Settings

if TYPE_CHECKING:
    from tpi_bench.measure.household import Household
    from tpi_bench.measure.ways import Fixed

GIGABIT = ("network.link_latency_ms=0.1", "network.bandwidth_mbps=1000")
_TASK = "task=advise"
_DEFAULTS = (
    "name=advise",
    "figure=experiments.fig_advise",
    "testbed=virtual",
    "workload.prompt_tokens=32",
    "workload.num_new_tokens=16",
    "workload.ignore_eos=true",
)
# What says how the search is run and told, and no point of it.
_NOT_OF_A_POINT = {"task", "report", "name", "output_dir", "results_dir", "timeout_s", "figure"}
_NOT_OF_A_POINT |= {"verbosity", "progress", "cache_dir", "wait", "resume"}


def with_advice_defaults(arguments: Sequence[str]) -> list[str]:
    """What `task=advise` means where it is not typed; other tasks as they are.

    The folder of a survey also says what connects its devices. Raises ValueError where none are
    named.
    """
    if _TASK not in arguments or {"--help", "-h"}.intersection(arguments):
        return list(arguments)
    given = {text.partition("=")[0].lstrip("+") for text in arguments}
    if "device" not in given:
        raise ValueError(
            'task=advise wants to know the devices: "device=[macbook_pro_m1,2*raspberry_pi_5]", '
            "of conf/device, described as old_pc(4,8,20,0.5), or files of task=calibrate"
        )
    if given & {"workload.prompt_ids", "prompt", "prompt_file"}:
        raise ValueError(
            "task=advise answers no prompt; give the length of one, workload.prompt_tokens=32"
        )
    added = [text for text in _DEFAULTS if text.partition("=")[0] not in given]
    networks = [text.partition("=")[2] for text in arguments if text.startswith("network=")]
    is_left_open = not any(key.startswith("network.") for key in given)
    surveyed = _surveyed(arguments) if is_left_open and not networks else None
    if surveyed is not None:
        added += _links_of(surveyed)
    elif is_left_open and networks in ([], ["switch"]):
        added += GIGABIT
    values = list(itertools.takewhile(lambda text: not text.startswith("-"), arguments))
    return [*values, *added, *arguments[len(values) :]]


def _links_of(folder: Path) -> list[str]:
    """As they can be typed without the folder; a single machine has none."""
    links = yaml.safe_load((folder / "network" / "survey.yaml").read_text()).get("mesh_links")
    if links is None:
        return ["network=none"]
    return ["network=mesh", f"network.mesh_links={json.dumps(links, separators=(',', ':'))}"]


def _surveyed(arguments: Sequence[str]) -> Path | None:
    """The folder of a survey, where `device=` names that and no other folder is looked up."""
    if any(text.startswith(("-cd", "--config-dir", "hydra.searchpath")) for text in arguments):
        return None
    typed = [text.partition("=")[2] for text in arguments if text.startswith("device=")]
    return surveyed_folder(typed[-1].strip("[]").split(",")) if typed else None


def household_of(settings: Settings, cache_dir: Path) -> Household:
    """Of what `device=` and `network=` say; one device that is named alone counts as often as
    `testbed.num_devices` says.
    """
    from tpi_bench.measure.household import Household

    if settings.testbed.cost != "modelled":
        raise ValueError(
            "task=advise looks ahead in virtual time with modelled cost; leave out testbed= and "
            "testbed.cost="
        )
    settings.testbed.check(settings.system, settings.network, needs_tokens=False)
    names = [source.name for source in settings.profiles]
    choices = chosen_devices(settings.overrides) or _named_alone(settings.overrides, names)
    if settings.memory_mb is not None:
        raise ValueError(
            "task=advise takes the memory of each device from its profile; leave out "
            "device.memory_mb, or change the profile: device.NAME.memory_gb=4"
        )
    count = settings.testbed.num_devices
    profiles = [source.load(cache_dir) for source in settings.profiles]
    if count is not None and len(choices) == 1:
        choices, profiles = choices * count, profiles * count
    elif count not in (None, len(choices)):
        raise ValueError(
            f"testbed.num_devices={count}, but device= names {len(choices)}; leave it out, as "
            "task=advise looks at fewer devices by itself"
        )
    return Household(choices=tuple(choices), profiles=tuple(profiles), network=settings.network)


def _named_alone(overrides: Sequence[str], names: list[str]) -> list[str]:
    typed = [text.partition("=")[2] for text in overrides if text.startswith("device=")]
    return typed[-1:] if typed and not typed[-1].startswith("[") else names


def fixed_of(settings: Settings) -> Fixed:
    """What was typed is not varied."""
    from tpi_bench.measure.ways import PRECISIONS, Fixed

    typed = {text.partition("=")[0].lstrip("+") for text in settings.overrides}
    is_system = any(key.partition(".")[0] == "system" for key in typed)
    dtype, weights = settings.model.dtype, settings.model.weights
    precisions: tuple[str, ...] = PRECISIONS
    if weights != "auto":
        precisions = (weights,)
    elif dtype != "auto":
        precisions = tuple(dict.fromkeys(["q4", "q8", resolve_types(dtype, "auto")[1]]))
    shares = settings.testbed.proportions
    chosen = choice_of(settings.overrides, "system") or "tpi"
    return Fixed(
        system=chosen if is_system else None,
        has=settings.raw["system"] if is_system else {},
        typed=frozenset(typed),
        precisions=precisions,
        dtype=dtype,
        shares=tuple(shares) if isinstance(shares, list) else shares,
    )


def choice_of(overrides: Sequence[str], group: str) -> str | None:
    """Of a group, as typed; None where it was not."""
    typed = [text.partition("=")[2] for text in overrides if text.startswith(f"{group}=")]
    return typed[-1] if typed else None


def base_of(settings: Settings, cache_dir: Path) -> Settings:
    """What every point has: a row of `task=measure`, on as many devices as are named."""
    own = [
        text
        for text in settings.overrides
        if text.partition("=")[0].lstrip("+") not in {*_NOT_OF_A_POINT, "testbed.num_devices"}
    ]
    values = {**settings.raw, "task": "measure", "timeout_s": None}
    values["testbed"] = {**values["testbed"], "num_devices": None}
    profiles = (source.load(cache_dir) for source in settings.profiles)  # this_host is one, too
    target = f"{DeviceProfile.__module__}.{DeviceProfile.__qualname__}"
    values["device"] = [{"_target_": target, **profile.as_given()} for profile in profiles]
    return settings_like(replace(settings, raw=values, overrides=tuple(own)), {})
