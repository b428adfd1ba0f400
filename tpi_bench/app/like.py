"""Settings like others, but for what is changed: as typed and composed anew, without composing.

Composing takes 0.1 s a point; a search that runs a hundred points makes their settings here. What
is changed has the names of the command line, so every point can be typed again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from tpi_bench.app.choices import GROUPS, choices_of
from tpi_bench.app.compose import settings_from
from tpi_bench.app.devices import name_of
from tpi_bench.measure.settings import Settings

Changes = Mapping[str, Any]


def settings_like(base: Settings, changes: Changes) -> Settings:
    """Raises ValueError where a value cannot be.

    `device` is a list of choices, of which `base` has the profiles; `device.NAME.FIELD` changes a
    number of one; any other key is a choice of a group, or one of its values.
    """
    values: dict[str, Any] = copy.deepcopy(base.raw)
    profiles = {profile["name"]: profile for profile in values["device"]}
    for key, given in changes.items():
        value: Any = list(given) if isinstance(given, tuple) else given
        group, _, name = key.partition(".")
        if key == "device":
            continue
        if group == "device":
            profile, _, field = name.rpartition(".")
            profiles[profile][field] = value
        elif name:
            values[group][name] = value
        elif group in GROUPS:
            values[group] = dict(choices_of(group)[value])
        else:
            values[key] = value
    if "device" in changes:
        values["device"] = [profiles[name_of(choice)] for choice in changes["device"]]
    return settings_from(values, [*kept_texts(base, changes), *texts_of(changes)])


def kept_texts(base: Settings, changes: Changes) -> list[str]:
    """What was typed and still holds: a new choice of a group ends all that was said of the old."""
    ended = {key for key in changes if key in GROUPS and key != "device"}
    named = {name_of(choice) for choice in changes.get("device", [])}
    kept = []
    for text in base.overrides:
        key = text.partition("=")[0].lstrip("+")
        group, _, name = key.partition(".")
        is_of_another = group == "device" and name and named and name.partition(".")[0] not in named
        if key not in changes and group not in ended and not is_of_another:
            kept.append(text)
    return kept


def texts_of(changes: Changes) -> list[str]:
    """As they are typed."""
    return [f"{key}={_text(value)}" for key, value in changes.items()]


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_text, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
