"""From plain values to a dataclass: names and types are checked against its annotations."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import types
import typing
from collections.abc import Iterable
from typing import Any

_CHOSEN = (str, int, float)  # types of which a setting's choices are all that it may be


def load_class(target: object, group: str) -> Any:
    """The dataclass that a group's `_target_` names. Raises ValueError."""
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
    return cls


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The nearest of the names that there are, as a question; all of them where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    return f"there are {', '.join(names) or 'none'}"


def make_dataclass(cls: Any, values: dict[str, Any], group: str) -> Any:
    """`cls(**values)` once names and types are known to be right; all that is missing is told."""
    fields = {field.name for field in dataclasses.fields(cls)}
    missing = _missing(cls, values)
    if missing:
        verb = "is missing; give it a value" if len(missing) == 1 else "are missing; give each one"
        unknown = "".join(
            f"; there is no {group}.{key}: {did_you_mean(key, missing, f'{group}.')}"
            for key in values
            if key not in fields and difflib.get_close_matches(key, missing)
        )
        raise ValueError(f"{', '.join(f'{group}.{name}' for name in missing)} {verb}{unknown}")
    hints = _hints_of(cls)
    choices = {field.name: field.metadata.get("choices", ()) for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"there is no {group}.{key}; {did_you_mean(key, fields, f'{group}.')}")
        if not fits(value, hints[key]):
            raise ValueError(wrong_type(f"{group}.{key}", value, hints[key]))
        if hints[key] in _CHOSEN and choices[key] and value not in choices[key]:
            names = ", ".join(map(str, choices[key]))
            raise ValueError(f"{group}.{key}={value} is unknown; choose one of {names}")
    _refuse_default(cls, values, hints)
    return cls(**values)


def wrong_type(key: str, value: Any, hint: Any) -> str:
    """What is wrong with a value that does not fit; of a list of good ones, how to sweep them."""
    said = f"{key}={shown(value)} has the wrong type; it must be {describe(hint)}"
    if isinstance(value, list) and value and all(fits(each, hint) for each in value):
        each = ",".join(map(shown, value))
        said += f"; to sweep over these, write {each} (-m {key}={each}; in a YAML {key}: '{each}')"
    return said


def shown(value: Any) -> str:
    """A plain value as one would type it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_default(cls: Any, values: dict[str, Any], hints: dict[str, Any]) -> None:
    """Of a setting that nothing gives a value: what its class says may be wrong as well."""
    for field in dataclasses.fields(cls):
        default = field.default
        if field.name in values or default is dataclasses.MISSING or not field.metadata:
            continue
        if not fits(list(default) if isinstance(default, tuple) else default, hints[field.name]):
            raise ValueError(
                f"{cls.__name__}.{field.name} has the default {default!r} of the wrong type; by "
                f"its annotation it must be {describe(hints[field.name])}"
            )


@functools.cache
def _hints_of(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _missing(cls: Any, values: dict[str, Any]) -> list[str]:
    """Fields without a value, in their order."""
    return [
        field.name
        for field in dataclasses.fields(cls)
        if values.get(field.name) == "???"
        or (
            field.name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
    ]


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotation's type; a whole number is a number too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if hint is type(None):
        return value is None
    if isinstance(origin, type):
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """An annotation in words, for people."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in typing.get_args(hint))
    if isinstance(typing.get_origin(hint), type):
        return f"a list of {_several(typing.get_args(hint)[0])}"
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(hint, str(hint))


def _several(hint: Any) -> str:
    if isinstance(typing.get_origin(hint), type):
        return f"lists of {_several(typing.get_args(hint)[0])}"
    return {int: "whole numbers", float: "numbers", str: "texts"}.get(hint, str(hint))
