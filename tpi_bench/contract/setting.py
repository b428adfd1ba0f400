"""A setting: a field of a dataclass that a YAML configures, with what it means said beside it.

`--help`, `conf/README.md` and README's table are made from these words (`app/settings.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, field
from typing import Any


def setting(
    default: Any, meaning: str, choices: Sequence[object] = (), *, common: bool = False
) -> Any:
    """A field with its meaning, and the values it takes where its type does not say it.

    `common` ones are those that README shows. MISSING as the default makes it one to be given.
    """
    metadata = {"meaning": meaning, "choices": tuple(choices), "common": common}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def needed(meaning: str) -> Any:
    """A setting without a default."""
    return setting(MISSING, meaning)
