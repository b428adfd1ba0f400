"""Names that do not exist, and a sweep without -m: what was meant, in one line.

Hydra refuses them while it composes the configuration; `main.py` asks here what to say of it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from tpi_bench.app import unknown_hydra
from tpi_bench.app.arguments import plain_text
from tpi_bench.app.choices import GROUPS, choices_of, defaults
from tpi_bench.app.config_folders import systems_offered
from tpi_bench.app.devices import FIELDS, names_of, plain_choices
from tpi_bench.app.misplaced import misplaced_in_experiments
from tpi_bench.app.settings import PLAIN
from tpi_bench.app.typed import did_you_mean, load_class
from tpi_bench.app.typed_folders import experiments_typed, folders_typed

_Choices = Mapping[str, Mapping[str, Any]]

_OF_ONES_OWN = {
    "model": ". A model of yours is model=hf model.path=FOLDER or FILE.gguf",
    "device": ". One of yours is described as device=[NAME(cores,GB,GB/s,disk GB/s)], like "
    "old_pc(4,8,20,0.5)",
}
_MOST_NAMED = 5
_NO_KEY = ("is not in struct", "' not in '")
_PLUS = "An item is already at '"
_COMMA = "Ambiguous value for argument '"  # how Hydra begins


def explained(error: BaseException, arguments: Sequence[str]) -> str | None:
    """A sentence of an unknown name or a comma among the `arguments`; None for other errors."""
    cause: BaseException | None = error
    of_hydra = isinstance(error, (HydraException, OmegaConfBaseException))
    if of_hydra:
        said = misplaced_in_experiments(arguments) or _of_plus(error, arguments)
        if said := said or unknown_hydra.of_typed(arguments):
            return said
    while cause is not None:
        if isinstance(cause, MissingConfigException):
            path = str(cause.missing_cfg_file)
            options = cause.options
            if options is None and path.partition("/")[0] in GROUPS:  # so of a list of choices
                options = list(_choices_of(path.partition("/")[0], arguments))
            if options is not None:
                return _of_choice(path, options)
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            key = _whole(cause.full_key, arguments)
            if isinstance(cause, ConfigKeyError) or any(part in str(cause) for part in _NO_KEY):
                return _of_key(key, arguments)
            is_hydras = key.startswith("hydra.")
            return unknown_hydra.of_value(key, str(cause)) if is_hydras else None
        if isinstance(cause, HydraException) and "@experiment." in str(cause):
            return (
                f"{str(cause).partition(':')[0].replace('In ', '')}: the first line of an "
                "experiment's YAML must be '# @package _global_'"
            )
        if isinstance(cause, HydraException) and (said := unknown_hydra.of_yaml(str(cause))):
            return said
        if isinstance(cause, HydraException) and str(cause).startswith(_COMMA):
            return _of_comma(str(cause).removeprefix(_COMMA).partition("'\n")[0], arguments)
        cause = cause.__cause__
    return None


def _of_plus(error: BaseException, arguments: Sequence[str]) -> str | None:
    """A plus before what there is already."""
    at = str(error).partition(_PLUS)[2].partition("'")[0]
    for text in arguments:
        key = text.partition("=")[0]
        own = key.lstrip("+")
        if own != key and own in (*GROUPS, *unknown_hydra.GROUPS_OF_HYDRA, at):
            typed = plain_choices(text)
            return f"{typed} adds what is there already; drop the plus: {typed.lstrip('+')}"
    return None


def _of_comma(typed: str, arguments: Sequence[str]) -> str:
    key, _, value = typed.partition("=")
    value = ",".join(map(plain_text, value.split(",")))
    if key == "device":
        listed = plain_choices(value)
        more = "" if "task=advise" in arguments else "; add -m to run each of them by itself"
        return f"{key}={listed}: several devices are written in brackets, {key}=[{listed}]{more}"
    if "task=advise" in arguments:
        return f"{key}={value} has several values; task=advise takes one: ask it once for each"
    is_choice = key.lstrip("+") in GROUPS
    listed = "" if is_choice else f"; a list is written {key}=[{value}]"
    return f"{key}={value} has several values; add -m to run each of them{listed}"


def _of_choice(path: str, options: Sequence[str]) -> str:
    own = path.removeprefix("model/")
    if own != path and ("/" in own or own.endswith(".gguf")):
        return f"there is no model={own}; a model of yours is model=hf model.path={own}"
    group, _, name = path.rpartition("/")
    if group.startswith("experiment/"):
        chosen = f"{group.removeprefix('experiment/')}: {name}"
        return (
            f"an experiment's defaults list says {chosen}; a choice is made there with "
            f"- override /{chosen}"
        )
    every = ", ".join(sorted(options))
    nearest = did_you_mean(name, options, f"{group}=")
    others = f" It is one of {every}" if nearest.endswith("?") else ""
    return f"there is no {group}={name}; {nearest}{others}{_OF_ONES_OWN.get(group, '')}"


def _whole(key: str, arguments: Sequence[str]) -> str:
    """As it was typed; Hydra names the first part of a key that is not there."""
    typed = (text.lstrip("+~").partition("=")[0] for text in arguments)
    return next((name for name in typed if name.startswith(f"{key}.")), key)


def _of_key(key: str, arguments: Sequence[str]) -> str | None:
    if key.startswith(("hydra.", "hydra/")):
        return unknown_hydra.of_key(key, arguments)
    group, _, name = key.partition(".")
    if group not in GROUPS:
        if inside := _with_groups(key, arguments):
            return f"there is no {key}; did you mean {' or '.join(inside)}?"
        known = [plain.name for plain in PLAIN if "." not in plain.name]
        return f"there is no {key}; {did_you_mean(key, [*known, *GROUPS])}"
    choices = _choices_of(group, arguments)
    if group == "device":
        return _of_device(key, choices, arguments)
    chosen = _without(name, group, choices, arguments)
    values = choices.get(chosen, {})
    if name in _unlisted(values, group):
        return (
            f"{group}={chosen} has the setting {name}, but its YAML gives it no value; add "
            f"{name} there with its default, or type +{key}=VALUE"
        )
    owners = _owners(choices, name)
    if owners:
        return (
            f"there is no {key} with {group}={chosen}; it is a setting of "
            f"{group}={', '.join(owners)}: add {group}={owners[0]}"
        )
    own = _names(values)
    if not difflib.get_close_matches(name, own):
        every = {each for values in choices.values() for each in _names(values)}
        for near in difflib.get_close_matches(name, every, n=1):
            theirs = ", ".join(_owners(choices, near))
            return f"there is no {key}; did you mean {group}.{near}, of {group}={theirs}?"
    return f"there is no {key}; {did_you_mean(name, own, f'{group}.')}"


def _choices_of(group: str, arguments: Sequence[str]) -> _Choices:
    """Those of the user's own folder and of other packages too."""
    own = choices_of(group, folders_typed(arguments))
    return own | systems_offered() if group == "system" else own


def _names(values: Mapping[str, object]) -> list[str]:
    return [name for name in values if not name.startswith("_") and name != "name"]


def _unlisted(values: Mapping[str, object], group: str) -> set[str]:
    """Fields of a choice's class that its YAML leaves out, which Hydra therefore does not know."""
    try:
        cls = load_class(values.get("_target_"), group)
    except ValueError:
        return set()  # it is refused with the reason once it is used
    return {field.name for field in dataclasses.fields(cls)} - set(values)


def _owners(choices: _Choices, name: str) -> list[str]:
    """A few choices of a group that have a setting; those first that others build on."""
    return [choice for choice, values in choices.items() if name in values][:_MOST_NAMED]


def _with_groups(name: str, arguments: Sequence[str]) -> list[str]:
    """A setting's whole name, where its group was left out: that of what is chosen by default."""
    plain = [known.name for known in PLAIN if known.name.endswith(f".{name}")]
    groups = {group: _choices_of(group, arguments) for group in GROUPS if group != "device"}
    chosen = [group for group in groups if name in groups[group].get(defaults()[group], {})]
    found = chosen or [group for group in groups if _owners(groups[group], name)]
    return plain + [f"{group}.{name}" for group in found]


def _of_device(key: str, choices: _Choices, arguments: Sequence[str]) -> str:
    """`device.PROFILE.NAME`, of a profile in force, or `device.memory_mb`."""
    profile, _, name = key.removeprefix("device.").rpartition(".")
    chosen = names_of(",".join(_chosen("device", arguments)))
    known = choices.get(profile, dict.fromkeys(FIELDS) if profile in chosen else None)
    if known is None:
        names = [*chosen, "memory_mb"]
        names += difflib.get_close_matches(profile, choices)
        return (
            f"there is no {key}; {did_you_mean(profile or name, names, 'device.')} "
            "(device.PROFILE.NAME=VALUE of a profile that device= names)"
        )
    if name in known:
        return f"there is no {key}, as device= does not name that profile; add device={profile}"
    return f"there is no {key}; {did_you_mean(name, _names(known), f'device.{profile}.')}"


def _without(name: str, group: str, choices: _Choices, arguments: Sequence[str]) -> str:
    """The choice of a group, of those that are made, that has no setting `name`."""
    chosen = _chosen(group, arguments)
    lacking = [one for one in chosen if name not in choices.get(one, {})]
    return (lacking or chosen)[0]


def _chosen(group: str, arguments: Sequence[str]) -> list[str]:
    """By the arguments, or else by the experiment that they name, or by default."""
    typed = [text.partition("=")[2] for text in arguments if text.startswith(f"{group}=")]
    if typed:
        return typed[-1].split(",")
    for experiment in experiments_typed(arguments):
        for line in experiment.get("defaults") or []:
            made = line.get(f"override /{group}") if isinstance(line, dict) else None
            if made is not None:
                return list(map(str, made)) if isinstance(made, list) else [str(made)]
    return [defaults()[group]]
