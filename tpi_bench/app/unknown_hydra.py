"""What is wrong with Hydra's own settings, and with the defaults list of an experiment's YAML.

`unknown.py` asks, with what Hydra says of them, which speaks of things that nobody typed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from tpi_bench.app.choices import GROUPS, choices_of
from tpi_bench.app.typed import did_you_mean
from tpi_bench.app.typed_folders import folders_typed

_HYDRA = "hydra."
_OWN_GROUPS = ("help", "hydra_logging", "job_logging", "launcher", "output", "sweeper")
GROUPS_OF_HYDRA = tuple(f"hydra/{group}" for group in _OWN_GROUPS)
_DEFAULTS = {"launcher": "points", "sweeper": "grids"}  # those whose settings their choice has
_NOT_THERE = re.compile(r"(?:In '([^']*)': )?Could not override '([^']*)'")
_TWICE = re.compile(
    r"Multiple values for ([^\s]+)\. To override a value use 'override [^:]*: (.*)'"
)
_IN_FILE = re.compile(
    r"In '([^']*)': \w+ raised while composing config:\n(.*)\n\s*full_key: (hydra\.\S*)"
)
_WRONG_CHOICE = re.compile(r"Invalid value '(.*)', expected one of \[(.*)\]")
_WRONG_TYPE = re.compile(r"Value '?(.*?)'? (?:of type '.*' could not be converted|\(.*\) is not a)")
_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def of_typed(arguments: Sequence[str]) -> str | None:
    """What Hydra's grammar or its defaults refuse: `hydra/GROUP.KEY=`, `experiment=`."""
    for text in arguments:
        key, _, value = text.partition("=")
        if key == "experiment":
            return f"{text} lacks a plus, with which an experiment is added; type +{text}"
        if key.startswith("hydra/") and "." in key:
            dotted = key.replace("/", ".")
            unknown = of_key(dotted, arguments)
            return unknown or f"there is no {key}; did you mean {dotted}={value}?"
    return None


def of_key(key: str, arguments: Sequence[str]) -> str | None:
    """Of `hydra.KEY` or `hydra/GROUP`; None for one that is known."""
    if key.startswith("hydra/"):
        group = key.removeprefix("hydra/")
        return f"there is no {key}; {did_you_mean(group, _OWN_GROUPS, 'hydra/')}"
    parts = key.removeprefix(_HYDRA).split(".")
    if parts[0] in _DEFAULTS and len(parts) > 1:
        return _of_choice(parts[0], parts[1], arguments)
    values = OmegaConf.structured(HydraConf)
    for number, part in enumerate(parts):
        if not isinstance(values, DictConfig) or not values:  # of which any key may be set
            return None
        if part not in values:
            above = ".".join(["hydra", *parts[:number]])
            known = map(str, values)
            return f"there is no {above}.{part}; {did_you_mean(part, known, f'{above}.')}"
        values = values._get_node(part)
    return None


def _of_choice(group: str, name: str, arguments: Sequence[str]) -> str | None:
    """`hydra.launcher.NAME`, which another choice of `hydra/launcher` may have."""
    typed = [text.partition("=")[2] for text in arguments if text.startswith(f"hydra/{group}=")]
    chosen = typed[-1] if typed else _DEFAULTS[group]
    choices = _settings_of(group, arguments)
    if name in choices.get(chosen, ()):
        return None
    said = f"there is no {_HYDRA}{group}.{name} with hydra/{group}={chosen}"
    owners = [choice for choice, names in choices.items() if name in names]
    if owners:
        listed = ", ".join(owners)
        return f"{said}; it is a setting of hydra/{group}={listed}: add hydra/{group}={owners[0]}"
    own = choices.get(chosen, [])
    others = sorted({each for names in choices.values() for each in names})
    near = difflib.get_close_matches(name, own, n=1) or difflib.get_close_matches(name, others, n=1)
    if not near or near[0] in own:
        return f"{said}; {did_you_mean(name, own, f'{_HYDRA}{group}.')}"
    listed = ", ".join(choice for choice, names in choices.items() if near[0] in names)
    return f"{said}; did you mean {_HYDRA}{group}.{near[0]}, of hydra/{group}={listed}?"


def _settings_of(group: str, arguments: Sequence[str]) -> Mapping[str, list[str]]:
    """The settings of each choice: of plug-ins, of `conf/`, and of a folder of the user's own."""
    Plugins.instance()  # which puts them into the store, if nothing has asked for them yet
    store, found = ConfigStore.instance(), dict[str, list[str]]()
    for file in store.list(f"hydra/{group}"):
        node = store.load(f"hydra/{group}/{file}").node
        found[file.removesuffix(".yaml")] = _plain(node)
    for choice, values in choices_of(f"hydra/{group}", folders_typed(arguments)).items():
        found[choice] = _plain(values)
    return found


def _plain(names: Iterable[Any]) -> list[str]:
    return [name for name in map(str, names) if not name.startswith("_")]


def of_value(key: str, said: str) -> str | None:
    """A value that a setting of Hydra's cannot have; `said` begins with what Hydra says of it."""
    said = said.partition("\n")[0]
    if choice := _WRONG_CHOICE.match(said):
        return f"{key}={choice[1]} is unknown; choose one of {choice[2]}"
    if wrong := _WRONG_TYPE.match(said):
        kind = next((words for name, words in _TYPES.items() if said.endswith(name)), None)
        must = f"it must be {kind}" if kind else "see python -m tpi_bench --cfg hydra"
        return f"{key}={wrong[1]} has the wrong type; {must}"
    return None


def of_yaml(said: str) -> str | None:
    """What Hydra says of the YAML of an experiment or of another choice; None for anything else."""
    if wrong := _IN_FILE.match(said):
        where, key = wrong[1].replace("/", "=", 1), wrong[3]
        why = of_key(key, ()) if "' not in '" in wrong[2] else of_value(key, wrong[2])
        return why and f"{where}: {why}"
    if twice := _TWICE.search(said):
        group, choice = twice.groups()
        return (
            f"{group}: {choice} is a second choice of {group}; in the defaults list of a YAML "
            f"write - override /{group}: {choice}"
        )
    found = _NOT_THERE.search(said)
    if found is None or found[1] is None:
        return None
    where, named = found[1].replace("/", "=", 1), found[2].partition("@")[0]
    group = named.removeprefix(f"{found[1].partition('/')[0]}/")
    if group != named and (group in GROUPS or group.startswith("hydra/")):
        return (
            f"{where}: override {group}: NAME in its defaults list lacks a slash; write "
            f"- override /{group}: NAME"
        )
    nearest = did_you_mean(group, (*GROUPS, *GROUPS_OF_HYDRA), "- override /")
    return f"{where}: its defaults list overrides {group}, which is no group; {nearest}"
