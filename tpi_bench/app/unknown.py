"""Names that do not exist, and a sweep without -m: what was meant, in one line.

Hydra refuses them while it composes the configuration; `main.py` asks here what to say of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from tpi_bench.app.choices import GROUPS, choices_of, defaults
from tpi_bench.app.settings import PLAIN
from tpi_bench.app.typed import did_you_mean

_MOST_NAMED = 5
_COMMA = "Ambiguous value for argument '"  # how Hydra begins


def explained(error: BaseException, arguments: Sequence[str]) -> str | None:
    """A sentence of an unknown name or a comma among the `arguments`; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MissingConfigException) and cause.options is not None:
            return _of_choice(str(cause.missing_cfg_file), cause.options)
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            is_unknown = isinstance(cause, ConfigKeyError) or "is not in struct" in str(cause)
            return _of_key(_whole(cause.full_key, arguments), arguments) if is_unknown else None
        if isinstance(cause, HydraException) and str(cause).startswith(_COMMA):
            return _of_comma(str(cause).removeprefix(_COMMA).partition("'\n")[0])
        cause = cause.__cause__
    return None


def _of_comma(typed: str) -> str:
    key, _, value = typed.partition("=")
    is_choice = key.lstrip("+") in GROUPS and key.lstrip("+") != "device"
    listed = "" if is_choice else f"; a list is written {key}=[{value}]"
    return f"{typed} has several values; add -m to run each of them{listed}"


def _of_choice(path: str, options: Sequence[str]) -> str:
    group, _, name = path.rpartition("/")
    every = ", ".join(sorted(options))
    nearest = did_you_mean(name, options, f"{group}=")
    others = f" It is one of {every}" if nearest.endswith("?") else ""
    return f"there is no {group}={name}; {nearest}{others}"


def _whole(key: str, arguments: Sequence[str]) -> str:
    """As it was typed; Hydra names the first part of a key that is not there."""
    typed = (text.lstrip("+~").partition("=")[0] for text in arguments)
    return next((name for name in typed if name.startswith(f"{key}.")), key)


def _of_key(key: str, arguments: Sequence[str]) -> str:
    group, _, name = key.partition(".")
    if group not in GROUPS:
        known = [plain.name for plain in PLAIN if "." not in plain.name]
        return f"there is no {key}; {did_you_mean(key, [*known, *GROUPS])}"
    if group == "device":
        return _of_device(key)
    chosen = _without(name, group, arguments)
    owners = _owners(group, name)
    if owners:
        return (
            f"there is no {key} with {group}={chosen}; it is a setting of "
            f"{group}={', '.join(owners)}: add {group}={owners[0]}"
        )
    own = _names(choices_of(group).get(chosen, {}))
    if not difflib.get_close_matches(name, own):
        every = {each for values in choices_of(group).values() for each in _names(values)}
        for near in difflib.get_close_matches(name, every, n=1):
            theirs = ", ".join(_owners(group, near))
            return f"there is no {key}; did you mean {group}.{near}, of {group}={theirs}?"
    return f"there is no {key}; {did_you_mean(name, own, f'{group}.')}"


def _names(values: Mapping[str, object]) -> list[str]:
    return [name for name in values if not name.startswith("_") and name != "name"]


def _owners(group: str, name: str) -> list[str]:
    """A few choices of a group that have a setting; those first that others build on."""
    return [choice for choice, values in choices_of(group).items() if name in values][:_MOST_NAMED]


def _of_device(key: str) -> str:
    """`device.PROFILE.NAME`, of a profile in force, or `device.memory_mb`."""
    profile, _, name = key.removeprefix("device.").rpartition(".")
    known = choices_of("device").get(profile)
    if known is None:
        names = [*choices_of("device"), "memory_mb"]
        return (
            f"there is no {key}; {did_you_mean(profile or name, names, 'device.')} "
            "(device.PROFILE.NAME=VALUE of a profile that device= names)"
        )
    if name in known:
        return f"there is no {key}, as device= does not name that profile; add device={profile}"
    return f"there is no {key}; {did_you_mean(name, _names(known), f'device.{profile}.')}"


def _without(name: str, group: str, arguments: Sequence[str]) -> str:
    """The choice of a group, of those that the arguments make, that has no setting `name`."""
    given = [text.partition("=")[2] for text in arguments if text.startswith(f"{group}=")]
    chosen = given[-1].split(",") if given else [defaults()[group]]
    lacking = [one for one in chosen if name not in choices_of(group).get(one, {})]
    return (lacking or chosen)[0]
